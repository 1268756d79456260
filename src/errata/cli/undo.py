"""`errata undo MY-ERRATA ID...`."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import images, options, screen
from errata.cli.opening import open_artifact, writing_into
from errata.storage.locking import WAIT


def undo(
    folder: options.Folder,
    ids: Annotated[list[str], typer.Argument(help="Ids of edits, as `errata list` shows them.")],
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
) -> None:
    """Take edits back; the model is then one that never had them."""
    if images.is_of_images(folder):
        images.take_back(folder, ids, wait)
        return
    from errata.saving import read_artifact

    read_artifact(folder)  # fails for any other folder, before `writing_into` makes a file in it
    with writing_into(folder, wait):
        edited = open_artifact(folder, dtype, device_map)
        with screen.busy("rewriting what shared a place with them"):
            edited.undo(*ids)
            edited.save_pretrained(folder)
    screen.say(f"{len(set(ids))} taken back, {len(edited.edits)} left in {folder}")
