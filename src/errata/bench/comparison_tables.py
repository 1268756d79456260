"""Tables that compare: methods on one stream, and two runs of the same."""

from __future__ import annotations

from collections.abc import Sequence

from errata.bench.results import Difference
from errata.bench.stream import Result
from errata.bench.tables import NONE, Table, costs, number, plain
from errata.cases import LOCALITY_KINDS
from errata.measures import MEASURES


def comparison_table(results: Sequence[Result]) -> str:
    """Return the results in Markdown for `errata compare`; teacher-forced figures in brackets."""
    head = [
        "T",
        "method",
        "reliability",
        "generalization",
        "locality",
        *LOCALITY_KINDS,
        "portability",
    ]
    head += ["s/edit", "peak MiB", "saved kB", "overhead 1 / 8"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *map(_compared, results))]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _compared(result: Result) -> list[str]:
    cells = [f"{result.edits:,}", result.name]
    if result.figures is None:
        return [*cells, plain(result.skipped or result.failed or ""), *[""] * 10]
    free, forced, kinds = (
        result.figures[name] for name in ("generated", "teacher_forced", "locality_by_kind")
    )
    both = {
        name: f"{free[name]:.2f} ({forced[name]:.2f})"
        for name in MEASURES
        if free[name] is not None
    }
    cells += [both.get(name, NONE) for name in ("reliability", "generalization", "locality")]
    cells += [number(kinds[kind], "{:.2f}") for kind in LOCALITY_KINDS]
    cells += [both.get("portability", NONE), *costs(result)]
    return [cell.replace(NONE, "-") for cell in cells]


def difference_table(found: Sequence[Difference], all_of_them: bool) -> Table:
    """Show what differs between two runs, beyond noise or all of it."""
    shown = [each for each in found if all_of_them or each.beyond_noise]
    rows = tuple(
        (
            f"{each.edits:,}",
            each.name,
            each.measure,
            each.score.replace("_", " "),
            f"{each.before:.3f}",
            f"{each.after:.3f}",
            f"{each.after - each.before:+.3f}",
            f"{each.low:+.3f} to {each.high:+.3f}",
            "yes" if each.beyond_noise else "no",
        )
        for each in shown
    )
    head = (
        "T",
        "method",
        "measure",
        "counted",
        "before",
        "after",
        "difference",
        "95 %",
        "beyond noise",
    )
    note = (
        f"{sum(each.beyond_noise for each in found)} of {len(found)} figures differ beyond noise."
    )
    return Table("Differences", note, head, rows)
