"""`errata learn MODEL --tasks a.jsonl b.jsonl --with ewc --out FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli import checkpoint, options, screen

if TYPE_CHECKING:
    from errata.continual import Continual


def learn(
    model: options.Opened,
    tasks: Annotated[
        list[Path],
        typer.Option(
            help="JSON lines of each task, in order: prompt and target, text and label, or text.",
        ),
    ],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="A new folder, for the model.")],
    plugin: Annotated[
        str, typer.Option("--with", metavar="PLUG-IN", help="What keeps it from forgetting.")
    ] = "er",
    tests: Annotated[
        list[Path] | None,
        typer.Option(help="What is asked of a task, once for each; else what was learned is."),
    ] = None,
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[TASK]...", help="Further files of --tasks.")
    ] = None,
    settings: options.Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = 60,
) -> None:
    """Train a model on task after task, and see what it forgets; run it again to resume."""
    from errata.cli.choices import Choices
    from errata.cli.opening import writing_into
    from errata.config import check_device, check_dtype
    from errata.continual import Continual, config_of, read_tasks, write
    from errata.continual.run import STATE
    from errata.continual.writing import RECORD
    from errata.lm import LM
    from errata.storage.checkpoints import remove_unfinished
    from errata.storage.files import folder_named

    check_dtype(dtype)
    check_device(device_map)
    config = config_of(plugin, Choices(None, settings or ()).given)
    read = read_tasks([*tasks, *(more or ())], tests or ())
    folder = folder_named(out)
    with writing_into(folder, wait):
        if not (folder / STATE).exists():
            checkpoint.check_new(folder, RECORD)
        remove_unfinished(folder)
        base, tokenizer = checkpoint.open_base(model, "learning", dtype, device_map)
        lm = LM(base, tokenizer, config.chat_template, config.end_token)
        with screen.steps() as progress:
            run = Continual(lm, plugin, config, read, progress)
            run.run(folder, progress)
            progress("writing the model", 0, 0)
            places = write(run, folder)
    if as_json:
        screen.print_json(run.record())
        return
    show_accuracies(run)
    where = ", ".join(map(str, places)) or "no ordinary model: what it learned is beside it"
    screen.say(f"{len(read)} tasks learned with {plugin}, {run.seconds:.0f} s; in {where}")


def show_accuracies(run: Continual) -> None:
    """Print the accuracy matrix, and what it says."""
    from errata.continual import MEANINGS, summary

    names = [task.name for task in run.tasks]
    shown = screen.table("accuracy on", *names)
    shown.add_row("before", *map(screen.figure, run.before))
    for name, row in zip(names, run.matrix, strict=True):
        shown.add_row(screen.plain(f"after {name}"), *map(screen.figure, row))
    screen.show(shown)
    found = summary(run.matrix, run.before)
    told = screen.table("", "", "it means")
    for name, meaning in MEANINGS.items():
        told.add_row(name.replace("_", " "), screen.figure(found[name]), meaning)
    screen.show(told)
