"""`errata ask MODEL "A question?"`."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import options, screen


def ask(
    model: options.Opened,
    prompts: Annotated[list[str], typer.Argument(help="What to ask; each is answered on its own.")],
    base: Annotated[
        bool, typer.Option("--base", help="Ask the base model, without the edits.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 32,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of {prompt, answer}.")
    ] = False,
) -> None:
    """Ask a model; one answer a line."""
    from errata.cli.opening import open_to_ask
    from errata.edit import check_characters

    for prompt in prompts:
        check_characters("a question", prompt)
    edited, unedited = open_to_ask(model, dtype, device_map)
    answers = (unedited if base else edited)(prompts, max_new_tokens=max_new_tokens)
    if as_json:
        screen.print_json(
            [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
        )
    else:
        screen.say("\n".join(answers))
