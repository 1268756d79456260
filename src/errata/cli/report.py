"""`errata report runs/*` and `errata diff RUN RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import screen
from errata.cli.reading import write_text


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `errata bench` or `errata compare` filled.")
    ],
    out: Annotated[
        Path, typer.Option(help="The page; the same tables in Markdown go beside it.")
    ] = Path("report.html"),
) -> None:
    """Make one page of results: tables with intervals, figures, and each number's origin."""
    from errata.bench.report import html, markdown
    from errata.bench.results import read_folders

    measured = read_folders(runs)
    write_text(out, html(measured))
    write_text(out.with_suffix(".md"), markdown(measured))
    screen.say(out)


def diff(
    first: Annotated[Path, typer.Argument(help="A folder of measurements.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    everything: Annotated[bool, typer.Option("--all", help="Show what is the same, too.")] = False,
) -> None:
    """Compare two runs: differences beyond noise, per method and number of edits."""
    from errata.bench.comparison_tables import difference_table
    from errata.bench.results import differences, read_folders
    from errata.errors import UsageError

    found = differences(read_folders([first]), read_folders([second]))
    if not found:
        raise UsageError(
            f"{first} and {second} have no method in common that was measured after as many edits."
        )
    screen.say(difference_table(found, everything).markdown())
