"""`errata edit MODEL --edits edits.jsonl --out my-errata`; `errata edit my-errata ...` goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import images, options, screen
from errata.cli.opening import open_to_edit
from errata.storage.locking import WAIT


def edit(
    model: options.ModelToEdit,
    edits: Annotated[
        Path, typer.Option(help="JSON lines: prompt, target, subject?, aliases?, operation?, id?.")
    ],
    out: options.OutFolder = None,
    method: Annotated[
        str | None, typer.Option("-m", "--method", help="See `errata methods`; folio by default.")
    ] = None,
    settings: options.Settings = None,
    preset: options.Preset = None,
    save_every: Annotated[int, typer.Option(min=1, help="Edits between two saves.")] = 10,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
    on_conflict: Annotated[
        str,
        typer.Option(
            help="An edit with an older edit's question and another answer: replace, keep, error."
        ),
    ] = "replace",
    executor: Annotated[
        str,
        typer.Option(
            help="local, or ray: parts that need not know each other go to the cluster of "
            "$RAY_ADDRESS."
        ),
    ] = "local",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Ask every new edit's prompt at the end.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write edits into a model, saving as it goes; run it again to go on where it stopped."""
    from errata import edit_stream
    from errata.cli.choices import Choices, conflict_choice, spread_by
    from errata.cli.edit_report import show_report, show_warnings
    from errata.cli.reading import check_edits_fit
    from errata.config import check_device, check_dtype
    from errata.edit import read_numbered_edits

    if images.is_of_images(model):
        given = Choices(None, settings or ()).given
        images.write(model, edits, out, method, given, save_every, wait, as_json)
        return
    choice = conflict_choice(on_conflict)
    check_dtype(dtype)
    check_device(device_map)
    numbered = read_numbered_edits(edits)
    choices = Choices(method, settings or (), preset)
    with open_to_edit(model, out, choices, dtype, device_map, wait) as (edited, folder):
        check_edits_fit(edited, edits, numbered)
        with spread_by(executor), screen.steps() as progress:
            wanted = [edit for _, edit in numbered]
            report = edit_stream(edited, wanted, folder, save_every, check, choice, progress)
    show_warnings(report)
    if as_json:
        screen.print_json({"folder": str(folder), **report.to_dict()})
    else:
        show_report(report, folder)
