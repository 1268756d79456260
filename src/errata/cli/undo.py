"""`errata undo MY-ERRATA ID...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import screen


def undo(
    folder: Annotated[Path, typer.Argument(help="A folder of edits.")],
    ids: Annotated[list[str], typer.Argument(help="Ids of edits, as `errata list` shows them.")],
) -> None:
    """Take edits back; the model is then one that never had them."""
    from errata.cli.opening import open_artifact

    edited = open_artifact(folder)
    with screen.busy("writing anew what shared a place with them"):
        edited.undo(*ids)
        edited.save_pretrained(folder)
    screen.say(f"{len(set(ids))} taken back, {len(edited.edits)} left in {folder}")
