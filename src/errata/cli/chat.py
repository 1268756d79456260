"""`errata chat MODEL`."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import options, screen


def chat(
    model: options.Opened,
    base: Annotated[
        bool, typer.Option("--base", help="Ask the base model, without the edits.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
) -> None:
    """Ask one question after another; each stands on its own."""
    from errata.cli.opening import open_to_ask
    from errata.edit import check_characters
    from errata.errors import UsageError

    edited, unedited = open_to_ask(model, dtype, device_map)
    screen.err.print("Ask away. /base QUESTION asks the model without edits, /quit ends.")
    while True:
        try:
            line = screen.err.input("> ").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        plain = base or line.startswith("/base ")
        question = line.removeprefix("/base ").strip()
        if not question:
            continue
        try:
            check_characters("the question", question)
            screen.say(
                (unedited if plain else edited)([question], max_new_tokens=max_new_tokens)[0]
            )
        except UsageError as error:
            screen.complain(str(error))
