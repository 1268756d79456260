"""What became of edits, and why a prompt is answered as it is. It decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from errata.edit import Edit
from errata.errors import EditError

OnConflict = Literal["replace", "keep", "error"]
"""What becomes of an edit that asks what an older one asks and wants another answer."""


@dataclass(frozen=True)
class EditResult:
    """What became of one edit: the final model's free answer to its prompt, and whether it is the
    target.
    """

    edit: Edit
    answer: str
    success: bool


@dataclass(frozen=True)
class EditReport:
    """What became of one call of `EditModel.edit`.

    Attributes:
        results: one per edit written, in order; empty when checking was turned off.
        skipped: ids of edits that were in the model already.
        conflicts: (new id, older id) of edits that ask the same and want another answer; see
            `EditModel.edit`.
        warnings: (id, what to know) of edits that were written and may not do what was meant.
    """

    results: list[EditResult] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    @property
    def success_rate(self) -> float | None:
        """Share of the edits written that the model now answers with their target."""
        return sum(r.success for r in self.results) / len(self.results) if self.results else None


@dataclass(frozen=True)
class Reason:
    """An edit that a prompt might be asking for, and how much speaks for it.

    Attributes:
        edit_id: the edit.
        score: what edits are chosen by.
        parts: what the score is made of, by name.
        place: where the edit is kept, as its method calls it.
    """

    edit_id: str
    score: float
    parts: Mapping[str, float]
    place: str


@dataclass(frozen=True)
class Explanation:
    """Who answers a prompt.

    Attributes:
        prompt: what is asked.
        edit_id: the edit that answers; None: the base model.
        threshold: an edit answers when its score is not below.
        reasons: the edits that were thought of, best first.
    """

    prompt: str
    edit_id: str | None
    threshold: float
    reasons: list[Reason]


def conflict_error(conflicts: Sequence[tuple[str, str]], edits: Iterable[Edit]) -> EditError:
    """What to say of conflicts, (new id, older id), where there may be none; edits are all that
    they may name.
    """
    known = {edit.id: edit for edit in edits}
    new, old = (known[name] for name in conflicts[0])
    more = f" ({len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
    return EditError(
        f"{new.id} ({new.prompt!r}, {new.target!r}) asks what {old.id} ({old.prompt!r}, {old.target!r}) asks and wants "
        f"another answer{more}; nothing was written. Take one out, or let the later one win (replace) or the older one stay "
        "(keep)."
    )


def older_kept(
    edits: Sequence[Edit], conflicts: Sequence[tuple[str, str]]
) -> tuple[list[Edit], list[tuple[str, str]], list[str]]:
    """(the edits that remain; the conflicts (new id, older id) that decided it; the ids of those
    left out).
    """
    gone: dict[str, None] = {}
    decided = []
    for new, older in conflicts:
        if older not in gone:
            gone[new] = None
            decided.append((new, older))
    return [edit for edit in edits if edit.id not in gone], decided, list(gone)
