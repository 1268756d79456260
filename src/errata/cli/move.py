"""`errata move MY-ERRATA --to MODEL --out NEW`: the edits of one base model on another."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.cli.opening import edits_of, load_base, open_artifact, writing_into
from errata.errors import UsageError
from errata.storage.locking import WAIT


def move(
    folder: options.Folder,
    to: Annotated[str, typer.Option(metavar="MODEL", help="The base model to move to.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="A new folder of edits.")],
    carry: Annotated[
        bool,
        typer.Option(
            "--carry",
            help="Carry over what was learned, by the words both models have; no writing.",
        ),
    ] = False,
    settings: options.Settings = None,
    save_every: Annotated[int, typer.Option(min=1, help="Edits between two saves.")] = 100,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    wait: options.Wait = WAIT,
) -> None:
    """Put a folder's edits into another base model, in a new folder; run it again to resume."""
    import errata
    from errata.cli.choices import Choices
    from errata.config import check_device, check_dtype
    from errata.saving import is_artifact
    from errata.storage.files import folder_named
    from errata.transfer import move as moved_to

    check_dtype(dtype)
    check_device(device_map)
    given = Choices(None, settings or ()).given
    if edits_of(to) is not None:
        raise UsageError(f"{to} is a folder of edits; move to a base model.")
    goal = folder_named(out)
    with writing_into(goal, wait):
        source = open_artifact(folder, dtype, device_map)
        base, tokenizer = load_base(to, dtype, device_map)
        if is_artifact(goal):
            target = errata.EditModel.from_pretrained(base, goal, tokenizer)
        else:
            config = dataclasses.replace(source.method.config, layer=None)
            config = type(config).from_dict({**config.to_dict(), **given})
            target = errata.get_edit_model(base, config, tokenizer)
        with screen.steps() as progress:
            found = moved_to(source, target, goal, carry, save_every, progress)
    report = found.report
    if as_json:
        screen.print_json({**report.to_dict(), "shared_tokens": found.shared})
        return
    said = sum(each.success for each in report.results)
    how = "written anew" if found.shared is None else f"carried over {found.shared:,} shared tokens"
    screen.say(f"{len(report.written)} edits {how}, {said} of them answered as wanted; in {goal}")
