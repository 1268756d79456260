"""Records results of `errata compare` and `errata bench` in docs/results, for `make docs`.

    errata compare atlas --edits 1000 --methods all --out ATLAS
    errata compare FACTLM --edits 100 --methods all --cases zsre.jsonl
        --train train.jsonl --out ZSRE
    errata bench benchmarks/recipes/zsre.yaml --model FACTLM --data FOLDER
    errata bench benchmarks/recipes/real-smollm2-zsre.yaml --model SMOLLM2 --data FOLDER
    errata compare atlas --edits 100 --methods kv-prefix,rag,... --out MEMORY
    python benchmarks/record.py compare-atlas=ATLAS compare-memory=MEMORY compare-zsre=ZSRE
        records-zsre=runs/zsre real-smollm2-zsre=runs/real-smollm2-zsre

Each argument is the name of a CSV file and the folder that its measurements lie in. For real-NAME
there are two files, the other one, real-NAME-probes, with the sceptic's probes by kind; there, and
in compare-memory, methods that the folder lacks keep their lines.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import results

from errata.bench.probe_tables import probes_mean
from errata.bench.results import Estimate, Measured, read_folders
from errata.bench.stream import FORCED, GIVEN, UNEDITED, Result
from errata.bench.tables import passes
from errata.cases import LOCALITY_KINDS
from errata.measures import MEASURES, PROBES
from errata.methods import variants
from errata.probes import KINDS

MEMORIES = "compare-memory"
"""A comparison of some methods, each of which has a command of its own."""


def record(name: str, rows: list[Result]) -> None:
    """Write docs/results/NAME.csv, the longest stream first."""
    compared = name.startswith("compare-")
    known = ["unedited", *variants()]
    rows = sorted(
        (row for row in rows if row.figures or (compared and row.skipped)),
        key=lambda row: (-row.edits, known.index(row.name)),
    )
    lines = [(_compared if compared else _of_records)(row, rows[0].edits) for row in rows]
    if name == MEMORIES:
        _replace(
            name, [{**line, "command": _alone(row)} for line, row in zip(lines, rows, strict=True)]
        )
        return
    results.write(name, lines)


def _alone(row: Result) -> str:
    """Return the command that measures one memory beside the base model."""
    parts = row.settings.items() if row.name == "pipeline" else ()
    given = "".join(f" --set pipeline.{name}={value}" for name, value in parts)
    return f"errata compare {row.model} --edits {row.edits} --methods {row.name}{given}"


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


def record_real(name: str, measured: list[Measured]) -> None:
    """Write docs/results/NAME.csv and docs/results/NAME-probes.csv, the longest stream first."""
    _replace(name, [_of_real(each, name) for each in measured])
    longest = max(each.result.edits for each in measured)
    asked = [each for each in measured if (each.result.figures or {}).get("probes")]
    probes = [each for each in asked if each.result.edits == longest]
    _replace(f"{name}-probes", [_of_probes(each, name) for each in probes])


def _replace(name: str, lines: list[dict[str, Any]]) -> None:
    """Write lines of methods and numbers of edits in the place of those that were recorded."""
    known = [UNEDITED, GIVEN, *variants()]

    def key(line: dict[str, Any]) -> tuple[int, int, bool]:
        plain = line["method"].removeprefix(FORCED)
        return -int(line.get("edits") or 0), known.index(plain), plain != line["method"]

    merged = {key(line): line for line in [*results.read(name), *lines]}
    results.write(name, [merged[each] for each in sorted(merged)])


def _of_real(each: Measured, name: str) -> dict[str, Any]:
    row = each.result
    found: dict[str, Any] = {"edits": row.edits, "method": row.name}
    found["left out"] = row.skipped or row.failed
    if row.figures:
        for measure in ("reliability", "generalization"):
            found |= _pair(each, measure)
        for kind in LOCALITY_KINDS:
            found |= _estimate(f"{kind} unchanged", each.figure("locality", "generated", kind))
        found |= _pair(each, "portability")
        if mean := probes_mean(each, "contains"):
            found |= _estimate("probes' mean", mean)
            found["probes' mean, exact"] = _number(_value(probes_mean(each, "exact")), ".2f")
    return found | {
        "passes per edit": _number(passes(row), ".1f"),
        "seconds per edit": _number(row.seconds_per_edit, ".2f"),
        "peak MiB": _number(row.peak_memory, ".0f"),
        "on": _device(row),
        **_provenance(row, name),
    }


def _device(row: Result) -> str:
    gpu = row.made.get("machine", {}).get("gpu")
    return gpu.removeprefix("NVIDIA ").split()[0] if gpu else "CPU"


def _of_probes(each: Measured, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"method": each.result.name}
    for kind in KINDS:
        if figure := each.figure(PROBES, "contains", kind):
            found |= _estimate(kind, figure)
            found[f"{kind}, exact"] = _number(_value(each.figure(PROBES, "exact", kind)), ".2f")
    return found | {"edits asked about": _asked(each), **_provenance(each.result, name)}


def _asked(each: Measured) -> int:
    return len({answer.edit_id for answer in each.answers if answer.measure == PROBES})


def _pair(each: Measured, measure: str) -> dict[str, str | None]:
    exact = _value(each.figure(measure, "normalised"))
    return {
        **_estimate(measure, each.figure(measure, "contains")),
        f"{measure}, exact": _number(exact, ".2f"),
    }


def _estimate(name: str, found: Estimate | None) -> dict[str, str | None]:
    return {
        name: _number(_value(found), ".2f"),
        f"{name}, 95 %": None if found is None else found.spread,
    }


def _value(found: Estimate | None) -> float | None:
    return None if found is None else found.value


def _provenance(row: Result, name: str) -> dict[str, Any]:
    return {
        "settings": " ".join(f"{setting}={value}" for setting, value in row.settings.items()),
        "model": Path(row.model).name,
        "data": Path(row.data).name.split()[0],
        "command": f"errata bench benchmarks/recipes/{name}.yaml",
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
        if name.startswith("real-"):
            record_real(name, read_folders([Path(folder)]))
        else:
            record(name, rows)


if __name__ == "__main__":
    main()
