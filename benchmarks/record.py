"""Records results of `errata compare` and `errata bench` in docs/results, for `make docs`.

    errata compare atlas --edits 1000 --methods all --out ATLAS
    errata compare FACTLM --edits 100 --methods all --cases zsre.jsonl
        --train train.jsonl --out ZSRE
    errata bench benchmarks/recipes/zsre.yaml --model FACTLM --data FOLDER
    python benchmarks/record.py compare-atlas=ATLAS compare-zsre=ZSRE records-zsre=runs/zsre

Each argument is the name of a CSV file and the folder that its measurements lie in.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import results

from errata.bench.stream import Result
from errata.measures import MEASURES
from errata.methods import variants


def record(name: str, rows: list[Result]) -> None:
    """Write docs/results/NAME.csv, the longest stream first."""
    compared = name.startswith("compare-")
    known = ["unedited", *variants()]
    rows = sorted(
        (row for row in rows if row.figures or (compared and row.skipped)),
        key=lambda row: (-row.edits, known.index(row.name)),
    )
    columns = _compared if compared else _of_records
    results.write(name, [columns(row, rows[0].edits) for row in rows])


def _compared(row: Result, longest: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"left out": row.skipped}
    if row.figures:
        figures |= results.measures(row.figures, MEASURES[:3])
        figures |= {
            kind: _number(share, ".2f") for kind, share in row.figures["locality_by_kind"].items()
        }
        figures |= results.measures(row.figures, MEASURES[3:])
    model, data = Path(row.model).name, Path(row.data).name.split()[0].removesuffix(".jsonl")
    cases = "" if model == "atlas" else f" --cases {data}.jsonl"
    return {
        "edits": row.edits,
        "method": row.name,
        **figures,
        "seconds per edit": _number(row.seconds_per_edit, ".2f"),
        "peak MiB": _number(row.peak_memory, ".0f"),
        "saved kB": None if row.bytes_saved is None else f"{row.bytes_saved / 1000:.0f}",
        "overhead at batch 1 / 8": " / ".join(
            f"{share:+.0%}" for share in (row.overhead or {}).values()
        ),
        "settings": " ".join(f"{setting}={value}" for setting, value in row.settings.items()),
        "model": model,
        "data": data,
        "command": f"errata compare {model}{cases} --edits {longest} --methods all",
    }


def _of_records(row: Result, longest: int) -> dict[str, Any]:
    figures = row.figures or {}
    drift = row.drift or {}
    return {
        "edits": row.edits,
        "method": row.name,
        **{name: share for name, share in results.measures(figures, MEASURES[:3]).items() if share},
        "reliability, cut": f"{figures['scores']['cut']['reliability']:.2f}",
        "reliability, forced exact": f"{figures['scores']['forced_exact']['reliability']:.2f}",
        "perplexity": f"{figures['perplexity']:,.3g}",
        "KL of neutral text": f"{drift.get('divergence', 0):.2g}",
        "seconds per edit": _number(row.seconds_per_edit, ".2f"),
        "model": Path(row.model).name,
        "data": Path(row.data).name.split()[0],
        "command": f"errata bench benchmarks/recipes/{row.task}.yaml",
    }


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def main() -> None:
    """Read folders, and record their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    for argument in parser.parse_args().folders:
        name, _, folder = argument.partition("=")
        rows = [row for file in Path(folder, "rows").glob("*.jsonl") if (row := Result.read(file))]
        if not rows:
            parser.error(f"{argument!r} is not NAME=FOLDER, where FOLDER has rows/*.jsonl")
        record(name, rows)


if __name__ == "__main__":
    main()
