"""What a folder of `errata compare` or `errata bench` holds, fit to be kept: sorted, with names
where it has paths.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from errata.bench.stream import Result
from errata.methods import variants


def measured(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a folder, the longest stream first."""
    found = [row for file in Path(folder, "rows").glob("*.jsonl") if (row := Result.read(file))]
    return [_named(row) for row in sorted(found, key=_order) if row.figures or row.skipped]


def _named(row: Result) -> dict[str, Any]:
    given = {name: Path(value).name for name, value in (("model", row.model), ("data", row.data))}
    settings = {
        name: Path(value).name if "/" in str(value) else value
        for name, value in row.settings.items()
    }
    return dataclasses.asdict(dataclasses.replace(row, **given, settings=settings))


def _order(row: Result) -> tuple[int, int, str]:
    names = ["unedited", *variants()]
    return -row.edits, names.index(row.name) if row.name in names else len(names), row.name
