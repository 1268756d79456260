"""Says in lines of text why a prompt is answered as it is, for `errata explain` and `ask --why`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from errata.words.visible import one_line

if TYPE_CHECKING:
    from errata.edit import Edit
    from errata.report import Explanation

SHOWN = 5
"""The most candidate edits shown."""


def lines_of(told: Explanation, edits: Mapping[str, Edit]) -> Iterator[str]:
    """Yield what answers, what it reads, and the edits whose subject is mentioned, best first.

    Args:
        told: the explanation.
        edits: the model's edits by id.
    """
    if told.by:
        yield f"{told.by} answers"
    if told.edit_id is not None:
        yield one_line(f"say: {told.edit_id} answers: {edits[told.edit_id].target}")
    elif told.read:
        read = [edits[each] for each in told.read]
        facts = "; ".join(f"{edit.id}: {edit.prompt} {edit.target}" for edit in read)
        yield one_line(f"read: the base model answers, and reads {facts}")
    elif told.withheld:
        erased = "; ".join(f"{each}: {edits[each].prompt}" for each in told.withheld)
        yield one_line(f"withhold: the base model answers, without what was erased by {erased}")
    elif told.by:
        yield "memory: it names no edit"
    else:
        yield "main: the base model answers"
    for reason in told.reasons[:SHOWN]:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in reason.parts.items())
        edit = edits[reason.edit_id]
        candidate = one_line(f"{reason.edit_id}  {edit.prompt} -> {edit.target}")
        yield f"{reason.score:.3f}  {candidate}  ({parts}; {reason.place})"
    if not told.reasons and told.by:
        return
    if not told.reasons:
        yield "no edit is about what it mentions"
        return
    intent = f"; the prompt's intent: {told.intent}" if told.intent else ""
    yield f"an edit answers from {told.threshold:.3f} on{intent}"


def as_json(told: Explanation) -> dict[str, Any]:
    """Return an explanation with its outcome, ready for JSON."""
    import dataclasses

    return {"outcome": told.outcome, **dataclasses.asdict(told)}
