"""`errata explain MODEL "A question?"`: which edit answers it, and why."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from errata.cli import options, screen

SHOWN = 5
"""The most candidate edits shown."""


def explain(
    model: options.Folder,
    prompts: Annotated[
        list[str], typer.Argument(help="What to ask; each is explained on its own.")
    ],
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Show which edit answers a prompt, its score and threshold, its place, and the next ones."""
    from errata.cli.opening import open_artifact
    from errata.edit import check_characters

    for prompt in prompts:
        check_characters("a question", prompt)
    edited = open_artifact(model, dtype, device_map)
    explanations = edited.explain(prompts)
    if as_json:
        screen.print_json([dataclasses.asdict(each) for each in explanations])
        return
    known = {edit.id: edit for edit in edited.edits}
    for each in explanations:
        answer = (
            "the base model answers"
            if each.edit_id is None
            else f"{each.edit_id} answers: {known[each.edit_id].target}"
        )
        screen.say(
            f"{screen.one_line(each.prompt)}\n"
            f"  {screen.one_line(answer)} (threshold {each.threshold:.3f})"
        )
        for reason in each.reasons[:SHOWN]:
            parts = ", ".join(f"{name} {value:.3f}" for name, value in reason.parts.items())
            edit = known[reason.edit_id]
            candidate = screen.one_line(f"{reason.edit_id}  {edit.prompt} -> {edit.target}")
            screen.say(f"  {reason.score:.3f}  {candidate}  ({parts}; {reason.place})")
        if not each.reasons:
            screen.say("  no edit is about what it mentions")
