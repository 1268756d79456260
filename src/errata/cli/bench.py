"""`errata bench zsre --data FOLDER -m wise -m folio --edits 1000`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import options, screen
from errata.errors import UsageError
from errata.storage.files import folder_named
from errata.storage.locking import WAIT

if TYPE_CHECKING:
    from errata.bench.plan import Plan


def bench(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(
            help="A task (`errata tasks`), a TOML file, or a YAML recipe; flags go above it."
        ),
    ],
    model: options.Model = "atlas",
    methods: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="Again and again; all by default.")
    ] = None,
    edits: Annotated[
        int | None, typer.Option(min=1, help="The length of the stream; all there are by default.")
    ] = None,
    checkpoints: Annotated[
        str, typer.Option(help="Measure after so many edits, and at the end.")
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
    probes: options.Probes = "",
    probe_edits: Annotated[
        int, typer.Option(min=1, help="Ask the probes about so many of the edits.")
    ] = 50,
    probe_wordings: Annotated[int, typer.Option(min=1, help="Wordings of each probe.")] = 1,
    locality_probes: Annotated[
        int | None,
        typer.Option(min=1, help="Ask at most so many locality probes of a kind for an edit."),
    ] = None,
    settings: options.MethodSettings = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder for measurements and saves; `runs/TASK-MODEL`."),
    ] = None,
    minutes: options.Minutes = 60,
    save_every: Annotated[
        int, typer.Option(min=1, help="Edits written in one call, and between two saves.")
    ] = 50,
    executor: Annotated[
        str, typer.Option(help="local, or ray: the cluster of $RAY_ADDRESS.")
    ] = "local",
    jobs: options.Jobs = 1,
    threads: options.Threads = None,
    seed: Annotated[int, typer.Option(help="Which cases, where they are made.")] = 0,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
) -> None:
    """Stream edits into a model and measure at every checkpoint; run it again to go on."""
    from errata.bench.plan import Plan, read_recipe
    from errata.cli import progress

    if "," in "".join(methods or ()):
        raise UsageError("give each method an -m of its own, e.g. -m wise -m grace.")
    fields = {name: value for name, value in context.params.items() if name not in ("task", "wait")}
    fields |= {
        "methods": tuple(methods or ["all"]),
        "settings": tuple(settings or ()),
        "probes": options.names(probes),
        "checkpoints": progress.checkpoints(checkpoints, "--checkpoints"),
        "data": data,
        "train": train,
        "text": text,
        "out": None if out is None else folder_named(out),
    }
    if Path(task).suffix not in (".yaml", ".yml"):
        _run(Plan(task, **fields), wait)
        return
    flags = {name: value for name, value in fields.items() if _is_given(context, name)}
    for plan in read_recipe(Path(task), flags):
        _run(plan, wait)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _run(plan: Plan, wait: float) -> None:
    """Measure a plan, and print its report."""
    from errata.bench.report import markdown
    from errata.bench.results import read_folders
    from errata.cli import progress

    found = progress.loaded(plan)
    stream, policy = found.stream, found.stream.policy
    if policy.conflicts:
        counted = f"{policy.conflicts} of {policy.records} records contradict another"
        screen.complain(f"{stream.data}: {counted}; read as {policy.name}.")
    _, text = progress.measured(
        plan, found, wait, "report.md", lambda _: markdown(read_folders([stream.folder]))
    )
    screen.say(text)
