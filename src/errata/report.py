"""Reports: the results of writing edits, and why a prompt is answered as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from errata.conflicts import Conflict
from errata.edit import Edit, same_answer
from errata.words.telling import still_told


@dataclass(frozen=True)
class EditResult:
    """The answer that the edited model generates to an edit's prompt.

    Attributes:
        edit: the edit.
        answer: the answer after all edits were written.
        success: whether it is the edit's target; where a fact is suppressed, whether the answer no
            longer tells it.
        suppressed: whether the edit erases by a method that says no refusal.
    """

    edit: Edit
    answer: str
    success: bool
    suppressed: bool = False


def judged(edit: Edit, answer: str, told: str | None = None) -> EditResult:
    """Return whether an answer to an edit's prompt is as wanted.

    Args:
        edit: the edit.
        answer: what the edited model says.
        told: what the base model says, where the edit erases it without a refusal; else None.
    """
    if told is None:
        return EditResult(edit, answer, same_answer(answer, edit.target))
    return EditResult(edit, answer, not still_told(answer, told, edit.prompt), suppressed=True)


@dataclass(frozen=True)
class EditReport:
    """What became of the edits that were given to `EditModel.edit` or `edit_stream`.

    Attributes:
        results: one per edit written, in order; empty when checking was turned off.
        skipped: ids of edits that were not written: those in the model already, and `left_out`.
        conflicts: (new id, older id) of edits that ask the same and want another answer.
        warnings: (id, what to know) of edits that were written and may not do what was meant.
        written: the edits that were written, in order.
        left_out: ids of edits that gave way to older ones.
        total: edits that are in the model now.
        seconds: what `edit_stream` took to write, without saving and checking.
    """

    results: list[EditResult] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    written: list[Edit] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    total: int = 0
    seconds: float = 0.0

    @property
    def success_rate(self) -> float | None:
        """Share of written edits that are answered with their target; None without results."""
        return sum(r.success for r in self.results) / len(self.results) if self.results else None

    @property
    def already_present(self) -> int:
        """How many of the edits were in the model already, or came twice."""
        return len(self.skipped) - len(self.left_out)

    def extended(self, part: EditReport, seconds: float) -> EditReport:
        """Return this report with the edits of one more part, written in so many seconds."""
        return replace(
            self,
            warnings=self.warnings + part.warnings,
            written=self.written + part.written,
            total=part.total,
            seconds=self.seconds + seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return counts, conflicts, warnings, and one result per edit written, ready for JSON."""
        results: list[dict[str, Any]] = [{"id": edit.id} for edit in self.written]
        for row, result in zip(
            results, self.results, strict=False
        ):  # no results: nothing was checked
            row.update(answer=result.answer, success=result.success)
        return {
            "written": len(self.written),
            "skipped": self.already_present,
            "edits": self.total,
            "conflicts": self.conflicts,
            "left_out": self.left_out,
            "warnings": self.warnings,
            "results": results,
        }


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
        read: the edits whose facts the base model reads before it answers.
        intent: in which way the prompt asks, where the method tells such ways apart.
        withheld: the edits whose erased facts are withheld from the answer.
        by: the method that answers, where one stands behind another; empty: the base model, or
            there is only one method.
    """

    prompt: str
    edit_id: str | None
    threshold: float
    reasons: list[Reason]
    read: tuple[str, ...] = ()
    intent: str = ""
    withheld: tuple[str, ...] = ()
    by: str = ""

    @property
    def outcome(self) -> str:
        """`say`: an edit answers; `read`: the base model, with facts; `withhold`: the base model,
        without what was erased; `memory`: a memory that names no edit; `main`: the base model.
        """
        if self.edit_id is not None:
            return "say"
        if self.read or self.withheld:
            return "read" if self.read else "withhold"
        return "memory" if self.by else "main"
