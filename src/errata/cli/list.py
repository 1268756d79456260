"""`errata list MY-ERRATA`."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli import images, options, screen


def list(
    folder: options.Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of edits.")] = False,
) -> None:
    """List the edits in a folder, oldest first, with their time and source."""
    if images.is_of_images(folder):
        images.show_list(folder, as_json)
        return
    from errata.cli.opening import read_edits
    from errata.methods import name_of

    artifact = read_edits(folder)
    if as_json:
        screen.print_json([edit.to_dict() for edit in artifact.edits])
        return
    rows = [edit.to_dict() for edit in artifact.edits]
    known = ("id", "time", "operation", "prompt", "target", "source")
    columns = [name for name in known if any(name in row for row in rows)]
    shown = screen.table(*columns)
    for row in rows:
        shown.add_row(*(screen.plain(row.get(name, "-")) for name in columns))
    screen.show(shown)
    method = name_of(artifact.method, artifact.settings)
    screen.err.print(f"{len(rows)} edits, {method}, on {artifact.base_name}", markup=False)
