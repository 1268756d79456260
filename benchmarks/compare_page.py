"""The tables of docs/compare.md and the README, from the folders that `errata compare` left.

    errata compare atlas --edits 1000 --methods all --out ATLAS
    errata compare FACTLM --edits 100 --methods all --cases zsre.jsonl --train zsre_train.jsonl
    --out ZSRE    # and CF python benchmarks/compare_page.py atlas=ATLAS zsre=ZSRE counterfact=CF

Rows are kept in benchmarks/results_compare.json: a folder can be added alone, and without any the
tables are written anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from measured import measured
from tables import fill, markdown

from errata.bench.stream import Result
from errata.bench.tables import comparison_table
from errata.evaluation import MEASURES

HERE = Path(__file__).parent
RESULTS = HERE / "results_compare.json"
PAGE, README = HERE.parent / "docs" / "compare.md", HERE.parent / "README.md"


def main() -> None:
    """Read folders, keep their rows, write the page."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for given in sys.argv[1:]:
        mark, _, folder = given.partition("=")
        known[mark] = measured(folder)
    if sys.argv[1:]:
        RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for mark, rows in known.items():
        fill(PAGE, mark, comparison_table([Result(**row) for row in rows]))
    fill(README, "atlas", markdown(short(known["atlas"])))


def short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The longest stream's figures in few columns."""
    longest = max(row["edits"] for row in rows)
    found = []
    for row in rows:
        if row["edits"] == longest and row["figures"]:
            free, forced = row["figures"]["generated"], row["figures"]["teacher_forced"]
            both = {name: f"**{free[name]:.2f}** ({forced[name]:.2f})" for name in MEASURES}
            seconds = row["seconds_per_edit"]
            found.append(
                {
                    f"T = {longest:,}": row["name"],
                    **both,
                    "s/edit": None if seconds is None else f"{seconds:.2f}",
                }
            )
    return found


if __name__ == "__main__":
    main()
