"""`errata compare atlas --edits 100 --methods all`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import screen
from errata.cli.opening import Wait, writing_into
from errata.errors import UsageError
from errata.storage.files import folder_named
from errata.storage.locking import WAIT


def compare(
    model: Annotated[
        str, typer.Argument(help="A hub name, a local folder, or the bundled 'atlas'.")
    ],
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
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME.SETTING=VALUE", help="A setting.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Folder for rows and saves; `out/compare-MODEL` by default."
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0, help="A method that would write for longer is left out.")
    ] = 60,
    jobs: Annotated[
        int, typer.Option(min=1, help="Methods at a time, each in a process of its own.")
    ] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads of each.")] = None,
    seed: Annotated[int, typer.Option(help="Which cases about atlas.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    device_map: Annotated[
        str | None, typer.Option(help="As in transformers, e.g. auto or cuda.")
    ] = None,
    wait: Wait = WAIT,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Hold methods against each other on one stream; called again, it goes on and measures what is
    missing.
    """
    from errata.bench.compare import compare, contenders, table
    from errata.bench.plan import Plan
    from errata.bench.stream import write_whole
    from errata.cli.racing import checkpoints, planned, race_bars
    from errata.saving import BUNDLED

    if cases is None and model not in BUNDLED:
        raise UsageError(
            f"say with --cases FILE what {model} is to be edited with; only cases about atlas are made here."
        )
    plan = Plan(
        "jsonl" if cases else "atlas",
        model,
        edits=edits,
        checkpoints=checkpoints(at, "--at"),
        reading="published",
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
    names = [name.strip() for name in methods.split(",") if name.strip()]
    found = planned(plan)
    stream, racers = found.stream, contenders(names, found.config, options or ())
    with writing_into(stream.folder, wait):
        with race_bars(len(racers)) as shown:
            rows = compare(stream, racers, jobs, shown)
        text = table(rows)
        write_whole(stream.folder / "table.md", text + "\n")
    if as_json:
        screen.print_json([dataclasses.asdict(row) for row in rows])
    else:
        screen.say(text)
    for row in rows:
        if row.failed:
            screen.complain(f"{row.name}, {row.edits} edits: {row.failed}")
