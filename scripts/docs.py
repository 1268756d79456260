"""Writes the generated tables of README.md and docs/: declarations of methods, and docs/results.

    python scripts/docs.py            # or `make docs`
    python scripts/docs.py --check    # writes nothing; ends with 1 if a page is out of date

A table stands between <!-- NAME --> and <!-- /NAME -->; the rest of a page is left as it is.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from errata.methods import METHODS, method_class

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PHASES = ("recognition", "association", "mastery")
PROVENANCE = {"settings", "model", "data", "command"}
SHORT = {
    "edits": "T",
    "seconds per edit": "s/edit",
    "passes per edit": "passes/edit",
    "overhead at batch 1 / 8": "overhead 1 / 8",
}
"""Columns whose name is shorter in a table."""
PAIR = "**{}** ({})"
"""A share of free answers, and teacher-forced accuracy."""
README_RESULTS = "real-smollm2-zsre"
IN_README = (
    "reliability",
    "generalization",
    "unrelated unchanged",
    "portability",
    "probes' mean",
    "passes/edit",
)
"""Columns of the README's table; docs/real.md has all."""
MEMORIES = (
    *("unedited", "given", "rag", "scr", "kv-prefix", "retro", "memorizing", "memoria"),
    *("memoryllm", "mplus", "neuraldb", "t-patcher", "memoir", "wise", "grace"),
    *("knn-lm", "spalm", "pipeline", "folio"),
)
"""Rows of docs/memory.md's table of a real model, from the input to the output."""
IN_MEMORY = (
    *("reliability", "generalization", "neighbour unchanged", "same_subject unchanged"),
    *("portability", "hop", "long", "s/edit", "passes/edit"),
)
Row = dict[str, Any]


def tables() -> Iterator[tuple[str, str, list[Row]]]:
    """(page, name, rows) of every table."""
    yield "docs/methods.md", "methods", methods()
    yield "README.md", "real", in_readme(read(README_RESULTS))
    for data in ("atlas", "zsre", "counterfact"):
        yield "docs/compare.md", data, [compared(row) for row in read(f"compare-{data}")]
    yield "docs/memory.md", "atlas", [compared(row) for row in read("compare-memory")]
    yield "docs/memory.md", "smollm2", in_memory("real-smollm2-counterfact")
    for task in ("zsre", "counterfact", "hallucination", "temporal"):
        rows = read(f"records-{task}")
        shown = [column for column in rows[0] if column not in ("edits", "method")]
        yield "docs/records.md", task, longest(rows, *shown)
        yield "docs/records.md", f"{task}-before", over_time(rows)
    yield "docs/engines.md", "table", read("engines")
    yield from real_tables()
    for path in sorted(RESULTS.glob("continual-*.csv")):
        yield "docs/continual.md", path.stem.removeprefix("continual-"), averaged(read(path.stem))
    for page in (
        *("folio", "by-heart", "atlas", "erase", "memory"),
        *("transfer", "agents", "images"),
    ):
        for path in sorted(RESULTS.glob(f"{page}-*.csv")):
            yield (
                f"docs/{page}.md",
                path.stem.removeprefix(f"{page}-"),
                [printed(row) for row in read(path.stem)],
            )


def real_tables() -> Iterator[tuple[str, str, list[Row]]]:
    """(page, name, rows) of the tables of real models, as many as there are files."""
    for path in sorted(RESULTS.glob("real-*.csv")):
        rows = [measured(row) for row in read(path.stem)]
        yield "docs/real.md", path.stem.removeprefix("real-"), rows


def read(name: str) -> list[Row]:
    """The rows of docs/results/NAME.csv; an empty cell is None."""
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [
            {column: cell or None for column, cell in row.items()} for row in csv.DictReader(file)
        ]


def printed(row: Row, pair: str = PAIR) -> Row:
    """A row as a table shows it: without provenance, and two ways of counting in one cell."""
    shown = {}
    for column, cell in row.items():
        forced = row.get(f"{column}, teacher-forced")
        if column not in PROVENANCE and not column.endswith(", teacher-forced"):
            shown[SHORT.get(column, column)] = (
                pair.format(cell, forced) if cell and forced else cell
            )
    return shown


def compared(row: Row) -> Row:
    """A row of `errata compare`; one without figures says why."""
    shown = printed(row, "{} ({})")
    why = shown.pop("left out")
    if why:
        blank = dict.fromkeys(shown, "")
        return {**blank, "T": shown["T"], "method": shown["method"], "reliability": why}
    return shown


def averaged(rows: Sequence[Row]) -> list[Row]:
    """A row for each plug-in: means over its seeds, and in brackets the lowest and the highest."""
    shown = []
    for name in dict.fromkeys(row["with"] for row in rows):
        own = [row for row in rows if row["with"] == name]
        made: Row = {"with": f"`{name}`", "kind": own[0]["kind"] or "-", "seeds": str(len(own))}
        for column in own[0]:
            if column in PROVENANCE or column in ("with", "kind", "seed"):
                continue
            cells = [float(row[column]) for row in own if row[column] is not None]
            made[column] = f"{sum(cells) / len(cells):.2f}" if cells else None
            if column == "seconds":
                made[column] = f"{sum(cells) / len(cells):.0f}"
            elif cells and max(cells) - min(cells) >= 0.005:
                made[column] += f" ({min(cells):.2f} to {max(cells):.2f})"
        shown.append(made)
    return shown


def measured(row: Row, interval: bool = True) -> Row:
    """A row of a real model: a share with its interval, and in brackets that of exact answers."""
    shown: Row = {}
    for column, cell in row.items():
        if column in PROVENANCE or column == "left out" or column.endswith((", exact", ", 95 %")):
            continue
        parts = [f"**{cell}**" if f"{column}, 95 %" in row and cell else cell]
        parts += [row.get(f"{column}, 95 %") if interval else None]
        exact = row.get(f"{column}, exact")
        parts += [f"({exact})" if exact else None]
        text = " ".join(part for part in parts if part)
        shown[SHORT.get(column, column)] = text or None
    if why := row.get("left out"):
        shown["reliability"] = why
    return shown


def longest(rows: Sequence[Row], *columns: str) -> list[Row]:
    """Some columns after all edits, for each method; their number is the first column's name."""
    edits = max(int(row["edits"]) for row in rows)
    last = [row for row in rows if int(row["edits"]) == edits and not row.get("left out")]
    names = {SHORT.get(column, column) for column in columns}
    return [
        {f"T = {edits:,}": row["method"]}
        | {name: cell for name, cell in printed(row).items() if name in names}
        for row in last
    ]


def in_readme(rows: Sequence[Row]) -> list[Row]:
    """The README's columns after all edits, for each method, without intervals."""
    edits = max(int(row["edits"]) for row in rows)
    found = []
    for row in rows:
        if int(row["edits"]) == edits and not row.get("left out"):
            shown = measured(row, interval=False)
            columns = {name: shown.get(name) for name in IN_README}
            found.append({f"T = {edits:,}": row["method"], **columns})
    return found


def in_memory(name: str) -> list[Row]:
    """Memories after all edits of a real model, with two of the sceptic's probes beside."""
    rows, probes = read(name), {row["method"]: row for row in read(f"{name}-probes")}
    edits = max((row["edits"] for row in rows), key=int)
    found = {}
    for row in rows:
        if row["edits"] == edits and not row.get("left out"):
            shown = measured(row) | measured(probes.get(row["method"], {}))
            columns = {column: shown.get(column) for column in IN_MEMORY}
            found[row["method"]] = {f"T = {edits}": row["method"], **columns}
    return [found[method] for method in MEMORIES if method in found]


def over_time(rows: Sequence[Row]) -> list[Row]:
    """Free reliability and locality of each method after each number of edits."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: int(row["edits"])):
        shown = found.setdefault(row["method"], {"reliability / locality": row["method"]})
        shown[f"T = {row['edits']}"] = f"{row['reliability']} / {row['locality']}"
    return [shown for method, shown in found.items() if method != "unedited"]


def methods() -> list[Row]:
    """What each method says of itself, phases in the order recognition, association, mastery."""
    needs = {
        "subject": "needs_subject",
        "statistics": "needs_statistics",
        "training": "needs_training",
    }
    classes = {name: method_class(name) for name in METHODS}
    return [
        {
            "method": ", ".join(f"`{each}`" for each in (name, *method.variants)),
            "phase": method.phase,
            "what it does": (method.__doc__ or "").strip().splitlines()[0].rstrip("."),
            "operations": ", ".join(method.operations),
            "undo": method.undo_is,
            "needs": ", ".join(word for word, flag in needs.items() if getattr(method, flag))
            or None,
            "paper": method.paper,
        }
        for name, method in sorted(classes.items(), key=lambda item: PHASES.index(item[1].phase))
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table; the columns are the keys, in the order of their first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [
        columns,
        ["---"] * len(columns),
        *([_cell(row.get(column)) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | None) -> str:
    if value is None:
        return "-"
    return f"{int(value):,}" if value.isdecimal() else value.replace("|", "\\|")


def filled(page: str, name: str, table: str) -> str:
    """The page with a table between its marks.

    Raises:
        ValueError: the page has no such marks.
    """
    before, opening, rest = page.partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not closing:
        raise ValueError(f"there are no marks for the table {name!r}")
    return f"{before}{opening}{table}\n{closing}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; end with 1 if a page is out of date"
    )
    options = parser.parse_args(arguments)
    old: dict[str, str] = {}
    new: dict[str, str] = {}
    for page, name, rows in tables():
        old.setdefault(page, (ROOT / page).read_text(encoding="utf-8"))
        new[page] = filled(new.get(page, old[page]), name, markdown(rows))
    stale = [page for page in new if new[page] != old[page]]
    for page in stale:
        if not options.check:
            (ROOT / page).write_text(new[page], encoding="utf-8")
        print(f"{page} is out of date: run `make docs`" if options.check else f"wrote {page}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
