"""Streams edits into one model, then evaluates it on all of them: a table of the README.

    python benchmarks/lifelong.py --method wise --edits 100          # atlas, the bundled model
    python benchmarks/lifelong.py --method wise --edits 1000 --set variant=retrieve
    python benchmarks/lifelong.py --model PATH --cases FILE          # any model and file of cases

A run goes on from its last save when it was cut off. With --record its figures go to
docs/results/lifelong.csv, from which `make docs` writes the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import results
import torch
from rich.console import Console
from rich.progress import Progress

import errata
from errata.atlas import make_cases
from errata.saving import is_artifact

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
    settings = [f"{name}={value}" for name, value in result["settings"].items()]
    run = {
        "method": " ".join([result["method"], *settings]),
        "edits": str(result["edits"]),
        "model": result["model"],
        "data": result["data"],
    }
    kept = [
        row
        for row in results.read("lifelong")
        if any(row[name] != value for name, value in run.items())
    ]
    files = "" if result["model"] == "atlas" else " --model FACTLM --cases FILE"
    seconds = f"{result['seconds_per_edit']:.2f}"
    row = {
        **run,
        **results.measures(result),
        "seconds per edit": seconds,
        "command": f"python benchmarks/lifelong.py --record{files}",
    }
    results.write("lifelong", [*kept, row])


def main() -> None:
    """Run a stream."""
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
        "--record", action="store_true", help="keep the figures in docs/results/lifelong.csv"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = run(options)
    if options.record:
        record(result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
