"""`errata push MY-ERRATA USER/NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen


def push(
    folder: options.Folder,
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="A repository of the hub: user/name.")
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Figures for the card, as `errata eval --json` prints."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The base model's name on the hub, of a local folder."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the edits, e.g. cc-by-4.0.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Only you may see it.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The main branch by default.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files; send nothing.")
    ] = False,
) -> None:
    """Push a folder of edits to the hub, with a model card; `errata ask REPO` then asks it."""
    with screen.busy("reading the edits"):
        from errata import hub

        figures = hub.read_figures(report) if report else None
        about = hub.About(base, license, figures)
        if dry_run:
            would = hub.preview(folder, repo, about)
    if dry_run:
        for name, size in would.files:
            screen.err.print(f"{name}, {size:,} bytes", markup=False)
        screen.say(would.card.removesuffix("\n"))
        return
    choices = hub.CommitOptions(private or None, None, revision, create_pr)
    with screen.busy(f"pushing to {repo}"):
        address = hub.push(folder, repo, about, choices)
    screen.say(address)
