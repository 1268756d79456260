"""What edits would change: asked before they are written, and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from errata.conflicts import Conflict, OnConflict
from errata.edit import Edit, check_characters
from errata.model import EditModel
from errata.report import EditReport
from errata.words.parts import mentions

NEARBY = 20
"""Stored edits that are asked, at most."""
Kind = Literal["edit", "prompt", "nearby"]
"""An edit's own prompt, one that was given, or that of a stored edit about the same subject."""


@dataclass(frozen=True)
class Row:
    """One prompt, before and after; `wanted` is the edit's target."""

    prompt: str
    kind: Kind
    before: str
    after: str
    wanted: str | None


@dataclass(frozen=True)
class Preview:
    """What edits would change, what writing them has found, and why the policy would refuse them:
    None where it would not.
    """

    rows: list[Row]
    conflicts: list[Conflict]
    warnings: list[tuple[str, str]]
    refused: str | None


def questions(
    edits: Sequence[Edit], prompts: Sequence[str], held: Sequence[Edit]
) -> dict[str, tuple[Kind, str | None]]:
    """Return what is asked: prompt -> its kind, and the target where it is an edit's.

    Raises:
        EditError: a prompt holds what is no text.
    """
    asked: dict[str, tuple[Kind, str | None]] = {}
    for edit in edits:
        asked.setdefault(edit.prompt, ("edit", edit.target))
    for prompt in prompts:
        check_characters("one of 'prompts'", prompt)
        asked.setdefault(prompt, ("prompt", None))
    subjects = [edit.subject for edit in edits if edit.subject]
    near = (
        edit.prompt for edit in held if any(mentions(edit.prompt, subject) for subject in subjects)
    )
    for prompt in islice(near, NEARBY):
        asked.setdefault(prompt, ("nearby", None))
    return asked


def tried(
    model: EditModel,
    edits: Sequence[Edit],
    asked: Mapping[str, tuple[Kind, str | None]],
    on_conflict: OnConflict,
    refusal: Callable[[EditReport], str | None],
) -> Preview:
    """Write edits, and ask before and after; the edits stay in the model.

    Args:
        model: the model.
        edits: what is tried.
        asked: see `questions`.
        on_conflict: see `EditModel.edit`.
        refusal: says why what was written would be refused.
    """
    before = model.ask(list(asked))
    report = model.edit(edits, check=False, on_conflict=on_conflict)
    after = model.ask(list(asked))
    rows = [
        Row(prompt, kind, was, now, wanted)
        for (prompt, (kind, wanted)), was, now in zip(asked.items(), before, after, strict=True)
    ]
    return Preview(rows, report.conflicts, report.warnings, refusal(report))
