"""`errata explain MODEL "A question?"`: what answers it, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import options, screen, why
from errata.words.visible import one_line


def explain(
    model: options.Folder,
    prompts: Annotated[
        list[str], typer.Argument(help="What to ask; each is explained on its own.")
    ],
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Show what answers a prompt, what is read for it, and the edits that it may be about."""
    from errata.cli.opening import open_artifact
    from errata.edit import check_characters

    for prompt in prompts:
        check_characters("a question", prompt)
    edited = open_artifact(model, dtype, device_map)
    explanations = edited.explain(prompts)
    if as_json:
        screen.print_json([why.as_json(each) for each in explanations])
        return
    known = {edit.id: edit for edit in edited.edits}
    for each in explanations:
        screen.say(one_line(each.prompt))
        for line in why.lines_of(each, known):
            screen.say(f"  {line}")
