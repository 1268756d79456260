"""A stream of edits into a model and onto the disk, a few at a time; what became of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from errata.cli import screen

if TYPE_CHECKING:
    from errata import Edit, EditModel
    from errata.report import OnConflict

SHOWN = 10
"""Most edits that failed that are shown one by one."""


@dataclass
class Report:
    """What became of the edits: those written, with the final model's answers; those passed over;
    the total now.
    """

    folder: Path
    total: int = 0
    skipped: int = 0
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    written: list[Edit] = field(default_factory=list)
    answers: list[str] | None = None

    @property
    def right(self) -> list[bool] | None:
        """Whether each answer is its target; None when nobody asked."""
        from errata.edit import same_answer

        if self.answers is None:
            return None
        return [
            same_answer(said, edit.target)
            for said, edit in zip(self.answers, self.written, strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        results: list[dict[str, Any]] = [{"id": edit.id} for edit in self.written]
        for row, said, right in zip(results, self.answers or (), self.right or (), strict=False):
            row.update(answer=said, success=right)
        counts = {"written": len(self.written), "skipped": self.skipped, "edits": self.total}
        return {
            "folder": str(self.folder),
            **counts,
            "conflicts": self.conflicts,
            "left_out": self.left_out,
            "warnings": self.warnings,
            "results": results,
        }

    def show(self) -> None:
        """In words, and the edits that were not learned."""
        right = self.right
        learned = f", {sum(right)} of them answered as wanted" if right else ""
        known = f", {self.skipped} were there already" if self.skipped else ""
        known += f", {len(self.left_out)} left out" if self.left_out else ""
        screen.say(
            f"{len(self.written)} edits written{learned}{known}; {self.total} in {self.folder}"
        )
        for new, old in self.conflicts:
            what = "it is left out" if new in self.left_out else "the later one is meant to win"
            screen.err.print(
                f"{new} asks what {old} asks and wants another answer; {what}", markup=False
            )
        told = zip(
            self.written, self.answers or (), right or (), strict=False
        )  # nothing, when nobody asked
        missed = [(edit, said) for edit, said, fine in told if not fine]
        for edit, said in missed[:SHOWN]:
            screen.err.print(
                f"not learned: {edit.id} {edit.prompt!r}: wanted {edit.target!r}, got {said!r}",
                markup=False,
            )
        if len(missed) > SHOWN:
            screen.err.print(f"... and {len(missed) - SHOWN} more")


def write(
    model: EditModel,
    edits: Sequence[Edit],
    folder: Path,
    save_every: int,
    check: bool,
    on_conflict: OnConflict = "replace",
) -> Report:
    """Write the edits that are not in the model yet; the folder is saved after every `save_every`
    of them, and at the end.

    Where a save takes longer than writing so many, it waits until as much time has gone into
    writing.

    Raises:
        EditError: there are conflicts, and `on_conflict` is `error`; nothing is written then.
        typer.Exit: with 130, after Ctrl-C. What was saved stays.
    """
    held = {edit.id for edit in model.edits}
    new = [edit for edit in {edit.id: edit for edit in edits}.values() if edit.id not in held]
    report = Report(folder, skipped=len(edits) - len(new), written=new)
    saved = len(held)
    if on_conflict == "error":
        model.refuse_conflicts(new)
    try:
        with screen.bar("editing", len(new)) as progress:
            done = 0

            def step(count: int) -> None:
                nonlocal done
                done += count
                progress(done, len(new))

            wrote = saving = 0.0
            for start in range(0, max(1, len(new)), save_every):
                part = new[start : start + save_every]
                begun = time.monotonic()
                found = model.edit(part, check=False, progress=step, on_conflict=on_conflict)
                report.conflicts += found.conflicts
                report.left_out += found.skipped
                report.warnings += found.warnings
                wrote += time.monotonic() - begun
                if wrote < saving and start + save_every < len(new):
                    continue
                begun = time.monotonic()
                model.save_pretrained(folder)
                saved, wrote, saving = len(model.edits), 0.0, time.monotonic() - begun
    except KeyboardInterrupt:
        screen.complain(
            f"stopped; {saved} edits are saved in {folder}. The same command goes on from there."
        )
        raise typer.Exit(130) from None
    for name, known in report.warnings[:SHOWN]:
        screen.complain(f"{name}: {known}")
    if len(report.warnings) > SHOWN:
        screen.complain(f"... and {len(report.warnings) - SHOWN} more warnings")
    report.total = len(model.edits)
    report.written = new = [edit for edit in new if edit.id not in report.left_out]
    if check:
        with screen.busy("asking the final model"):
            report.answers = model.ask([edit.prompt for edit in new]) if new else []
    return report
