"""The tables of docs/records.md, from the folders that `errata bench` left.

    errata bench benchmarks/recipes/zsre.yaml --model FACTLM --data FOLDER       # and counterfact,
    hallucination, temporal python benchmarks/records_page.py runs/zsre runs/counterfact
    runs/hallucination runs/temporal

Rows are kept in benchmarks/results_records.jsonl, so a folder can be added alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from measured import measured
from tables import fill, markdown

from errata.evaluation import MEASURES

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results_records.jsonl", HERE.parent / "docs" / "records.md"


def main() -> None:
    """Read folders, keep their rows, write the page."""
    known: dict[str, list[dict[str, Any]]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else ():
        row = json.loads(line)
        known.setdefault(row["task"], []).append(row)
    for folder in sys.argv[1:]:
        rows = measured(folder)
        known[rows[0]["task"]] = rows
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for rows in known.values() for row in rows]
    RESULTS.write_text("".join(lines), encoding="utf-8")
    for task, rows in known.items():
        fill(
            PAGE,
            task,
            markdown(
                [_short(row) for row in rows if row["edits"] == rows[0]["edits"] and row["figures"]]
            ),
        )
        fill(PAGE, f"{task}-before", markdown(_over_time(rows)))


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """A row in few columns: free answers, in brackets teacher-forced."""
    found = row["figures"]
    free, forced = found["generated"], found["teacher_forced"]
    columns: dict[str, Any] = {f"T = {row['edits']}": row["name"]}
    for name in MEASURES[:3]:
        if free[name] is not None:
            columns[name] = f"**{free[name]:.2f}** ({forced[name]:.2f})"
    for name in ("cut", "forced_exact"):
        columns[f"reliability, {name.replace('_', ' ')}"] = (
            f"{found['scores'][name]['reliability']:.2f}"
        )
    drift = row["drift"] or {}
    return {
        **columns,
        "perplexity": f"{found['perplexity']:,.3g}",
        "KL of neutral text": f"{drift.get('divergence', 0):.2g}",
        "s/edit": None if row["seconds_per_edit"] is None else f"{row['seconds_per_edit']:.2f}",
    }


def _over_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reliability and locality at each checkpoint."""
    at = sorted({row["edits"] for row in rows})
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["figures"] and row["name"] != "unedited":
            free = row["figures"]["generated"]
            said = f"{free['reliability']:.2f} / {free['locality']:.2f}"
            found.setdefault(row["name"], {"reliability / locality": row["name"]})[
                f"T = {row['edits']}"
            ] = said
    return [
        {"reliability / locality": name, **{f"T = {n}": row.get(f"T = {n}") for n in at}}
        for name, row in found.items()
    ]


if __name__ == "__main__":
    main()
