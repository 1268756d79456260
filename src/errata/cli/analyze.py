"""`errata analyze tracing --model atlas` and `errata failures runs/zsre`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.storage.files import folder_named


def analyze(
    name: Annotated[str, typer.Argument(help="Which; an unknown name lists them.")],
    model: options.Model = "atlas",
    edits: Annotated[int, typer.Option(min=1, help="The length of the stream.")] = 100,
    task: Annotated[
        str, typer.Option(help="Where the edits come from, see `errata tasks`.")
    ] = "atlas",
    data: Annotated[
        Path | None, typer.Option(help="The task's file, or a folder that it lies under.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="For analyses of any method.")
    ] = None,
    settings: options.Settings = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder for NAME.json and NAME.png; `out/NAME`."),
    ] = None,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
) -> None:
    """Run one of the papers' analyses: numbers as JSON and a figure as PNG."""
    from errata.analyses import analysis
    from errata.analyses.context import AnalysisContext, keep
    from errata.bench.plan import Plan
    from errata.cli.choices import Choices
    from errata.cli.progress import loaded

    module = analysis(name)
    plan = Plan(task, model, methods=(), edits=edits, data=data, dtype=dtype, device_map=device_map)
    stream = loaded(plan).stream
    with screen.steps() as progress:
        context = AnalysisContext(
            model,
            stream.cases[:edits],
            Path("out") / name if out is None else folder_named(out),
            method,
            Choices(None, settings or ()).given,
            dtype,
            device_map,
            progress,
            stream.trust_remote_code,
        )
        found = module.find(context)
    for path in keep(context, name, found, module.draw(found)):
        screen.say(path)


def failures(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `errata bench` or `errata compare` filled.")
    ],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for failures.json and failures.png.")
    ] = "out/failures",
) -> None:
    """Sort wrong answers by kind of error, with examples."""
    from errata.analyses import failures
    from errata.analyses.context import AnalysisContext, keep
    from errata.bench.results import read_folders

    measured = read_folders(runs)
    found = failures.find(measured)
    context = AnalysisContext(measured[0].result.model, [], folder_named(out))
    for path in keep(context, "failures", found, failures.draw(found)):
        screen.say(path)
