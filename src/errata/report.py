"""Reports: the results of writing edits, and why a prompt is answered as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from errata.edit import Edit
from errata.errors import EditError

OnConflict = Literal["replace", "keep", "error"]
"""What is done with an edit that asks what an older one asks and wants another answer."""


@dataclass(frozen=True)
class EditResult:
    """The answer that the edited model generates to an edit's prompt.

    Attributes:
        edit: the edit.
        answer: the answer after all edits were written.
        success: whether it is the edit's target.
    """

    edit: Edit
    answer: str
    success: bool


@dataclass(frozen=True)
class EditReport:
    """The result of one call of `EditModel.edit`.

    Attributes:
        results: one per edit written, in order; empty when checking was turned off.
        skipped: ids of edits that were in the model already.
        conflicts: (new id, older id) of edits that ask the same and want another answer; see
            `EditModel.edit`.
        warnings: (id, message) of edits that were written and may not do what was meant.
    """

    results: list[EditResult] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    @property
    def success_rate(self) -> float | None:
        """Share of the edits written that the model answers with their target; None without
        results.
        """
        return sum(r.success for r in self.results) / len(self.results) if self.results else None


@dataclass(frozen=True)
class Reason:
    """An edit that a prompt may be about, with its score.

    Attributes:
        edit_id: the edit.
        score: the score that edits are chosen by.
        parts: the parts of the score, by name.
        place: where the edit is stored, in its method's words.
    """

    edit_id: str
    score: float
    parts: Mapping[str, float]
    place: str


@dataclass(frozen=True)
class Explanation:
    """Which edit answers a prompt, and why.

    Attributes:
        prompt: the question.
        edit_id: the edit that answers; None: the base model does.
        threshold: the lowest score with which an edit answers.
        reasons: the candidate edits, best first.
    """

    prompt: str
    edit_id: str | None
    threshold: float
    reasons: list[Reason]


def conflict_error(conflicts: Sequence[tuple[str, str]], edits: Iterable[Edit]) -> EditError:
    """Return the error for conflicts, where none are allowed.

    Args:
        conflicts: (new id, older id) of each, at least one.
        edits: the edits that these ids belong to, and maybe others.
    """
    by_id = {edit.id: edit for edit in edits}
    new, old = (by_id[edit_id] for edit_id in conflicts[0])
    more = f" ({len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
    return EditError(
        f"{new.id} ({new.prompt!r}, {new.target!r}) asks what {old.id} ({old.prompt!r}, "
        f"{old.target!r}) asks and wants another answer{more}; nothing was written. "
        "Take one out, or let the later one win (replace) or the older one stay (keep)."
    )


def keep_older(
    edits: Sequence[Edit], conflicts: Sequence[tuple[str, str]]
) -> tuple[list[Edit], list[tuple[str, str]], list[str]]:
    """Leave out edits that conflict with an older one that stays.

    Returns:
        (the edits that stay, the conflicts (new id, older id) with an older one that stays, the ids
        of the edits left out).
    """
    left_out: dict[str, None] = {}
    decisive = []
    for new, older in conflicts:
        if older not in left_out:
            left_out[new] = None
            decisive.append((new, older))
    return [edit for edit in edits if edit.id not in left_out], decisive, list(left_out)
