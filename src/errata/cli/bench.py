"""`errata bench zsre --data FOLDER -m wise -m folio --edits 1000`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import screen
from errata.cli.opening import Wait, writing_into
from errata.cli.reading import write_text
from errata.errors import UsageError
from errata.storage.files import folder_named
from errata.storage.locking import WAIT

if TYPE_CHECKING:
    from errata.bench.plan import Plan


NAMES = {"at": "checkpoints", "options": "settings"}
"""Flags whose fields of a `Plan` are called otherwise."""


def bench(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(
            help="A task (`errata tasks`), a TOML file, or a YAML recipe; flags go above it."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="A hub name, a local folder, or the bundled 'atlas'.")
    ] = "atlas",
    methods: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Again and again; all by default.")
    ] = None,
    edits: Annotated[
        int | None, typer.Option(min=1, help="The length of the stream; all there are by default.")
    ] = None,
    at: Annotated[
        str, typer.Option("--checkpoints", help="Measure after so many edits, and at the end.")
    ] = "1,10,100,1000",
    reading: Annotated[
        str, typer.Option(help="published, conflict-free or later: what to do with contradictions.")
    ] = ("conflict-free"),
    data: Annotated[
        Path | None, typer.Option(help="The task's file, or a folder that it lies under.")
    ] = None,
    train: Annotated[
        Path | None, typer.Option(help="Other records, for methods that are trained.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Plain text on which drift is measured.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME.SETTING=VALUE", help="A setting.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder for measurements and saves; `runs/TASK-MODEL`."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0, help="A method that would write for longer is left out.")
    ] = 60,
    save_every: Annotated[
        int, typer.Option(min=1, help="Edits written in one call, and between two saves.")
    ] = 50,
    executor: Annotated[
        str, typer.Option(help="local, or ray: the cluster of $RAY_ADDRESS.")
    ] = "local",
    jobs: Annotated[
        int, typer.Option(min=1, help="Methods at a time, each in a process of its own.")
    ] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads of each.")] = None,
    seed: Annotated[int, typer.Option(help="Which cases, where they are made.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    device_map: Annotated[
        str | None, typer.Option(help="As in transformers, e.g. auto or cuda.")
    ] = None,
    wait: Wait = WAIT,
) -> None:
    """Stream edits into a model and measure all of them at every checkpoint; called again, it goes
    on where it was.
    """
    from errata.bench.plan import Plan, read_recipe
    from errata.cli.racing import checkpoints

    if "," in "".join(methods or ()):
        raise UsageError("give each method an -m of its own, e.g. -m wise -m grace.")
    said = {
        "model": model,
        "methods": tuple(methods or ["all"]),
        "settings": tuple(options or ()),
        "edits": edits,
        "checkpoints": checkpoints(at, "--checkpoints"),
        "reading": reading,
        "data": data,
        "train": train,
        "text": text,
        "out": None if out is None else folder_named(out),
        "minutes": minutes,
        "save_every": save_every,
        "executor": executor,
        "jobs": jobs,
        "threads": threads,
        "seed": seed,
        "dtype": dtype,
        "device_map": device_map,
    }
    if Path(task).suffix not in (".yaml", ".yml"):
        _run(Plan(task, **said), wait)  # type: ignore[arg-type]
        return
    flags = [
        name
        for name in context.params
        if (said_by := context.get_parameter_source(name)) and said_by.name == "COMMANDLINE"
    ]
    given = {
        NAMES.get(name, name): said[NAMES.get(name, name)]
        for name in flags
        if name not in ("task", "wait")
    }
    for plan in read_recipe(Path(task), given):
        _run(plan, wait)


def _run(plan: Plan, wait: float) -> None:
    """Measure a plan, and say where the measurements are."""
    from errata.bench.compare import compare, contenders
    from errata.bench.report import markdown
    from errata.bench.results import read_folders
    from errata.cli.racing import planned, race_bars

    found = planned(plan)
    racers = contenders(plan.methods, found.config, plan.settings)
    stream = found.stream
    if stream.reading.conflicts:
        counted = (
            f"{stream.reading.conflicts} of {stream.reading.records} records contradict another"
        )
        screen.complain(f"{stream.data}: {counted}; read as {stream.reading.name}.")
    with writing_into(stream.folder, wait):
        with race_bars(len(racers)) as shown:
            rows = compare(stream, racers, plan.jobs, shown, plan.executor)
        text = markdown(read_folders([stream.folder]))
        write_text(stream.folder / "report.md", text)
    screen.say(text)
    for row in rows:
        if row.failed:
            screen.complain(f"{row.name}, {row.edits} edits: {row.failed}")
