"""`errata cases atlas -n 100`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import screen
from errata.errors import StorageError, UnknownNameError, suggest


def cases(
    world: Annotated[
        str, typer.Argument(help="What to make cases about: the bundled 'atlas'.")
    ] = "atlas",
    n: Annotated[int, typer.Option("-n", help="How many.")] = 100,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A file; stdout when left out.")] = None,
) -> None:
    """Write edits with rephrasings, locality and portability probes, one JSON line each."""
    from errata.atlas import make_cases
    from errata.cases import cases_to_json_lines

    if world != "atlas":
        raise UnknownNameError(f"there are no cases about {world!r}.{suggest(world, ['atlas'])}")
    lines = cases_to_json_lines(make_cases(n, seed))
    if out is None:
        screen.say(lines.removesuffix("\n"))
        return
    try:
        out.write_text(lines, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error}).") from error
