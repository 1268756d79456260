"""Reads and writes docs/results/NAME.csv: each line is a line of a table in docs/.

Figures are rounded as the tables print them. The last columns say of which model and data they are,
and which command gives them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.measures import MEASURES

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no such file. An empty cell is None."""
    path = FOLDER / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {column: cell or None for column, cell in row.items()} for row in csv.DictReader(file)
        ]


def write(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a file; the columns are their keys, those of provenance last."""
    columns = dict.fromkeys(column for row in rows for column in row)
    last = [column for column in ("settings", "model", "data", "command") if column in columns]
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file,
            [*(column for column in columns if column not in last), *last],
            lineterminator="\n",
        )
        writer.writeheader()
        writer.writerows({column: _rounded(cell) for column, cell in row.items()} for row in rows)


def measures(
    figures: Mapping[str, Any], names: Sequence[str] = MEASURES, digits: int = 2
) -> dict[str, str | None]:
    """Return shares of free answers, and teacher-forced ones, from `Evaluation.to_dict`."""
    found: dict[str, str | None] = {}
    for name in names:
        free = figures["generated"][name]
        found[name] = None if free is None else f"{free:.{digits}f}"
        found[f"{name}, teacher-forced"] = (
            None if free is None else f"{figures['teacher_forced'][name]:.{digits}f}"
        )
    return found


def _rounded(cell: Any) -> Any:
    return f"{cell:.{3 if abs(cell) < 10 else 0}f}" if isinstance(cell, float) else cell
