"""`errata analyze tracing --model atlas` and `errata failures runs/zsre`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import screen
from errata.storage.files import folder_named


def analyze(
    name: Annotated[str, typer.Argument(help="Which; an unknown name lists them.")],
    model: Annotated[
        str, typer.Option(help="A hub name, a local folder, or the bundled 'atlas'.")
    ] = "atlas",
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
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder for NAME.json and NAME.png; `out/NAME`."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    device_map: Annotated[
        str | None, typer.Option(help="As in transformers, e.g. auto or cuda.")
    ] = None,
) -> None:
    """Look closer at one thing, after the papers: numbers as JSON and a figure as PNG."""
    from errata.analyses import analysis
    from errata.analyses.given import Given, keep
    from errata.bench.plan import Plan
    from errata.cli.choices import Choices
    from errata.cli.racing import planned

    module = analysis(name)
    stream = planned(
        Plan(task, model, edits=edits, data=data, dtype=dtype, device_map=device_map)
    ).stream
    with screen.steps() as tell:
        settings = Choices(None, options or ()).given
        given = Given(
            model,
            stream.cases[:edits],
            Path("out") / name if out is None else folder_named(out),
            method,
            settings,
            dtype,
            device_map,
            tell,
            stream.trust_remote_code,
        )
        found = module.find(given)
    for path in keep(given, name, found, module.draw(found)):
        screen.say(path)


def failures(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `errata bench` or `errata compare` filled.")
    ],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for failures.json and failures.png.")
    ] = "out/failures",
) -> None:
    """Sort wrong answers by how they are wrong, with examples."""
    from errata.analyses import failures
    from errata.analyses.given import Given, keep
    from errata.bench.results import read_folders

    measured = read_folders(runs)
    found = failures.find(measured)
    for path in keep(
        Given(measured[0].row.model, [], folder_named(out)), "failures", found, failures.draw(found)
    ):
        screen.say(path)
