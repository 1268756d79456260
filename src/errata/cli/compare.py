"""`errata compare atlas --edits 100 --methods all`: a small `errata bench` with one short table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.errors import UsageError
from errata.storage.files import folder_named
from errata.storage.locking import WAIT


def compare(
    model: options.ModelArgument,
    edits: Annotated[int, typer.Option(min=1, help="The length of the stream.")] = 100,
    methods: Annotated[
        str, typer.Option(help="Names with commas between, or all. See `errata methods`.")
    ] = "all",
    cases: Annotated[
        Path | None, typer.Option(help="JSON lines of cases; about atlas they are made.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="JSON lines of other cases, for methods that are trained.")
    ] = None,
    at: Annotated[
        str, typer.Option(help="Measure after so many edits; the stream's length is added.")
    ] = "1,10,100,1000",
    settings: options.MethodSettings = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder for rows and saves; `out/compare-MODEL` by default."
        ),
    ] = None,
    minutes: options.Minutes = 60,
    jobs: options.Jobs = 1,
    threads: options.Threads = None,
    seed: Annotated[int, typer.Option(help="Which cases about atlas.")] = 0,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Compare methods on one stream; run it again to measure what is missing."""
    from errata.bench.comparison_tables import comparison_table
    from errata.bench.plan import Plan
    from errata.cli.progress import checkpoints, loaded, measured
    from errata.saving import BUNDLED

    if cases is None and model not in BUNDLED:
        raise UsageError(
            f"say with --cases FILE what {model} is to be edited with; "
            "only cases about atlas are made here."
        )
    plan = Plan(
        "jsonl" if cases else "atlas",
        model,
        options.names(methods),
        tuple(settings or ()),
        edits,
        checkpoints(at, "--at"),
        "published",
        data=cases,
        train=train,
        out=Path("out") / f"compare-{Path(model).name}" if out is None else folder_named(out),
        minutes=minutes,
        threads=threads,
        jobs=jobs,
        seed=seed,
        dtype=dtype,
        device_map=device_map,
    )
    results, table = measured(plan, loaded(plan), wait, "table.md", comparison_table)
    if as_json:
        screen.print_json([dataclasses.asdict(result) for result in results])
    else:
        screen.say(table)
