"""`errata consolidate MY-ERRATA -m METHOD --out NEW`: settled edits move into the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.cli.opening import open_artifact
from errata.cli.reading import read_prompts, rewordings_of
from errata.errors import UsageError
from errata.words.visible import one_line


def consolidate(
    folder: options.Folder,
    out: Annotated[Path, typer.Option(help="A new folder.")],
    method: Annotated[
        str, typer.Option("-m", "--method", help="One that changes weights, see `errata methods`.")
    ],
    settings: options.Settings = None,
    preset: options.Preset = None,
    cases: Annotated[
        Path | None,
        typer.Option(help="JSON lines: the edits with their rephrases, and locality to keep."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Prompts, one a line, whose answers must not change.")
    ] = None,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what became of each edit.")
    ] = False,
) -> None:
    """Write edits into the weights where that makes nothing worse; the others stay beside them."""
    from errata.cases import read_cases
    from errata.cli.choices import Choices
    from errata.config import check_device, check_dtype
    from errata.consolidation import EDITS
    from errata.consolidation import consolidate as consolidated

    check_dtype(dtype)
    check_device(device_map)
    choices = Choices(method, settings or (), preset)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; give a new folder.")
    kept = [] if keep is None else read_prompts(keep)
    given = [] if cases is None else read_cases(cases)
    edited = open_artifact(folder, dtype, device_map)
    rewordings = rewordings_of(edited.edits, given)
    kept += [probe.prompt for case in given for probe in case.locality]
    with screen.steps() as progress:
        config = choices.config(edited.base.config)
        found = consolidated(edited, config, out, rewordings, kept, progress)
    if as_json:
        screen.print_json(
            {
                "settled": [edit.id for edit in found.settled],
                "both": [edit.id for edit in found.both],
                "refused": {edit.id: why for edit, why in found.refused},
            }
        )
        return
    for edit, why in found.refused:
        screen.say(f"{edit.id} stays beside the weights: {one_line(why)}")
    of = f"{len(found.settled)} of {len(found.settled) + len(found.refused)} edits"
    if not found.settled:
        screen.say(f"{of} could be settled; nothing was written, and {folder} is as it was")
    else:
        screen.say(f"{of} are in the weights; ask, edit or serve {out / EDITS} from now on")
