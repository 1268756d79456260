"""Prints an `EditReport`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from errata.cli import screen

if TYPE_CHECKING:
    from errata import EditReport

Item = TypeVar("Item")
SHOWN = 10
"""The most failed edits, and the most warnings, that are shown one by one."""


def show_warnings(report: EditReport) -> None:
    """Print the warnings about edits that were written, on stderr."""
    for edit_id, warning in _first(report.warnings, "more warnings", screen.complain):
        screen.complain(f"{edit_id}: {warning}")


def show_report(report: EditReport, folder: Path) -> None:
    """Print how many edits were written, the conflicts, and the edits that were not learned."""
    learned = (
        f", {sum(r.success for r in report.results)} of them answered as wanted"
        if report.results
        else ""
    )
    present = f", {report.already_present} were there already" if report.already_present else ""
    left_out = f", {len(report.left_out)} left out" if report.left_out else ""
    edits = "1 edit" if len(report.written) == 1 else f"{len(report.written)} edits"
    screen.say(f"{edits} written{learned}{present}{left_out}; {report.total} in {folder}")
    for new, old in report.conflicts:
        outcome = "it is left out" if new in report.left_out else "the later one is meant to win"
        screen.err.print(
            f"{new} asks what {old} asks and wants another answer; {outcome}", markup=False
        )
    missed = [result for result in report.results if not result.success]
    for result in _first(missed, "more", screen.err.print):
        edit = result.edit
        missing = (
            f"not erased: {edit.id} {edit.prompt!r}: still"
            if result.suppressed
            else f"not learned: {edit.id} {edit.prompt!r}: wanted {edit.target!r},"
        )
        screen.err.print(f"{missing} got {result.answer!r}", markup=False)


def _first(items: Sequence[Item], rest: str, say: Callable[[str], None]) -> Iterator[Item]:
    """Yield the first `SHOWN` items, then say how many more there are."""
    yield from items[:SHOWN]
    if len(items) > SHOWN:
        say(f"... and {len(items) - SHOWN} {rest}")
