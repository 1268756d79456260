"""`errata ask MODEL "A question?"`."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import options, screen, why
from errata.errors import UsageError


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
    with_reasons: Annotated[
        bool, typer.Option("--why", help="Say behind each answer where it comes from.")
    ] = False,
) -> None:
    """Ask a model; one answer a line."""
    from errata.cli.opening import open_to_ask
    from errata.edit import check_characters

    for prompt in prompts:
        check_characters("a question", prompt)
    if with_reasons:
        _with_reasons(model, prompts, base, max_new_tokens, dtype, device_map, as_json)
        return
    edited, unedited = open_to_ask(model, dtype, device_map)
    answers = (unedited if base else edited)(prompts, max_new_tokens=max_new_tokens)
    if as_json:
        screen.print_json(
            [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
        )
    else:
        screen.say("\n".join(answers))


def _with_reasons(
    model: str,
    prompts: list[str],
    base: bool,
    max_new_tokens: int,
    dtype: str,
    device_map: str | None,
    as_json: bool,
) -> None:
    from errata.cli.opening import open_artifact

    if base:
        raise UsageError("--why is about the edits, and --base leaves them out; give one of them.")
    edited = open_artifact(model, dtype, device_map)
    told = edited.explain(prompts)
    answers = edited.ask(prompts, max_new_tokens=max_new_tokens)
    if as_json:
        rows = zip(prompts, answers, told, strict=True)
        screen.print_json(
            [{"prompt": p, "answer": a, "why": why.as_json(each)} for p, a, each in rows]
        )
        return
    known = {edit.id: edit for edit in edited.edits}
    for answer, each in zip(answers, told, strict=True):
        screen.say(answer)
        for line in why.lines_of(each, known):
            screen.say(f"  {line}")
