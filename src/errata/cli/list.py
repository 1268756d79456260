"""`errata list MY-ERRATA`."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import screen
from errata.cli.opening import Folder


def list(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of edits.")] = False,
) -> None:
    """List the edits in a folder, oldest first."""
    from errata.saving import read_artifact

    artifact = read_artifact(folder)
    if as_json:
        screen.print_json([edit.to_dict() for edit in artifact.edits])
        return
    shown = screen.table("id", "operation", "prompt", "target")
    for edit in artifact.edits:
        shown.add_row(*(screen.plain(text) for text in (edit.id, edit.operation, edit.prompt, edit.target)))
    screen.show(shown)
    screen.err.print(f"{len(artifact.edits)} edits, {artifact.method}, on {artifact.base_name}", markup=False)
