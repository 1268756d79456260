"""Prints what `errata eval` found of an edited model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from errata.cli import screen

if TYPE_CHECKING:
    from errata.measures import Evaluation


def show_evaluation(found: Evaluation) -> None:
    """Print an evaluation as tables."""
    from errata.measures import MEANINGS
    from errata.probes import KINDS

    shown = screen.table(f"{found.edits} cases", "generated", "teacher-forced", "it means")
    for measure, meaning in MEANINGS.items():
        figures = (found.generated[measure], found.teacher_forced[measure])
        shown.add_row(measure, *map(screen.figure, figures), meaning)
    for kind, share in found.locality_by_kind.items():
        shown.add_row(f"  locality, {kind}", screen.figure(share), "", "")
    screen.show(shown)
    if not found.probes:
        return
    contains, exact = (found.probes[score] for score in ("contains", "exact"))
    shown = screen.table("probes", "contains", "exact", "right is")
    for kind in contains:
        right = KINDS[kind].right if kind in KINDS else "over the kinds"
        shown.add_row(kind, screen.figure(contains[kind]), screen.figure(exact[kind]), right)
    screen.show(shown)
    if found.probes_left_out:
        counted = ", ".join(f"{kind} of {edits}" for kind, edits in found.probes_left_out.items())
        screen.complain(f"edits without what a probe needs, left out: {counted}.")
