"""Edits streamed one after another into one model, then everything asked of the final model. Makes
the README's table.

    python benchmarks/lifelong.py --method wise --edits 100          # atlas, the bundled model
    python benchmarks/lifelong.py --method wise --edits 1000 --set variant=retrieve
    python benchmarks/lifelong.py --model PATH --cases FILE          # any model and file of cases
    python benchmarks/lifelong.py --table                            # write the recorded results
    into README.md

A run goes on from its last save when it was cut off. Its figures go to benchmarks/results.json with
--record.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from tables import fill

import errata
from errata.atlas import make_cases
from errata.evaluation import MEASURES
from errata.saving import is_artifact

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE.parent / "README.md"
console = Console(stderr=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One stream; returns its figures."""
    settings = dict(item.split("=", 1) for item in options.set)
    config = errata.method_class(options.method).config_class.from_dict(settings)
    cases = (
        errata.read_cases(options.cases)[: options.edits]
        if options.cases
        else make_cases(options.edits, options.seed)
    )
    data = Path(options.cases).stem if options.cases else f"seed-{options.seed}"
    saved = options.out / "-".join(
        [options.method, Path(options.model).name, data, str(len(cases)), *sorted(options.set)]
    )
    if is_artifact(saved):
        model = errata.load(saved)
    else:
        model = errata.get_edit_model(*_swap(errata.load_base(options.model, "float32"), config))
    clock = saved / "seconds.txt"
    seconds = float(clock.read_text()) if clock.exists() else 0.0
    with Progress(console=console) as progress:
        bar = progress.add_task("editing", total=len(cases))

        def on_save(report: errata.EditReport) -> None:
            clock.write_text(f"{seconds + report.seconds}\n")

        report = errata.edit_stream(
            model,
            [case.edit for case in cases],
            saved,
            save_every=1,
            check=False,
            progress=lambda what, done, total: progress.update(bar, completed=done),
            on_save=on_save,
        )
        seconds += report.seconds
        asking = progress.add_task("asking", total=None)
        found = errata.evaluate(
            model, cases, progress=lambda d, t: progress.update(asking, completed=d, total=t)
        )
    with (saved / "answers.jsonl").open("w", encoding="utf-8") as file:
        for answer in found.answers:
            file.write(json.dumps(vars(answer), ensure_ascii=False) + "\n")
    return {
        "model": Path(options.model).name,
        "data": Path(options.cases).stem if options.cases else f"atlas seed {options.seed}",
        "method": options.method,
        "settings": settings,
        "seconds_per_edit": round(seconds / len(cases), 3),
        **found.to_dict(),
    }


def _swap(pair: Any, config: errata.MethodConfig) -> tuple[Any, errata.MethodConfig, Any]:
    return pair[0], config, pair[1]


def record(result: dict[str, Any]) -> None:
    """Put a result among the recorded ones, in place of an older one of the same run."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    same = ("model", "data", "method", "settings", "edits")
    kept = [other for other in kept if any(other[key] != result[key] for key in same)] + [result]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def table() -> str:
    """The recorded results as a Markdown table."""
    lines = [
        "| model, data | method | T | reliability | generalization | locality | portability | s/edit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in sorted(
        json.loads(RESULTS.read_text()),
        key=lambda r: (r["data"], r["edits"], r["method"] != "wise"),
    ):
        cells = []
        for name in MEASURES:
            free, forced = result["generated"][name], result["teacher_forced"][name]
            cells.append("-" if free is None else f"**{free:.2f}** ({forced:.2f})")
        method = " ".join([result["method"], *(f"{k}={v}" for k, v in result["settings"].items())])
        data = (
            result["data"] if result["model"] == "atlas" else f"{result['model']}, {result['data']}"
        )
        lines.append(
            f"| {data} | {method} | {result['edits']:,} | "
            + " | ".join(cells)
            + f" | {result['seconds_per_edit']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run a stream, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="atlas")
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--method", default="wise")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/lifelong"))
    parser.add_argument(
        "--record", action="store_true", help="keep the figures in benchmarks/results.json"
    )
    parser.add_argument(
        "--table", action="store_true", help="write the recorded figures into README.md and stop"
    )
    options = parser.parse_args()
    if options.table:
        fill(README, "results", table())
        return
    torch.set_num_threads(options.threads)
    result = run(options)
    if options.record:
        record(result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
