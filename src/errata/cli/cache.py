"""`errata cache`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from errata.cli import screen

MEGABYTE = 2**20


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is listed.")] = False,
    kind: Annotated[
        str | None, typer.Option(help="Only files of one kind, as the list names them.")
    ] = None,
) -> None:
    """List, or remove, what was computed once for each base model and is kept on disk.

    Nothing is lost with it but time. It lies in $ERRATA_CACHE, or in ~/.cache/errata.
    """
    from errata.config import check_choice
    from errata.storage.cache import KINDS, cache_folder, entries
    from errata.storage.cache import clear as remove

    if kind is not None:
        check_choice("--kind", kind, tuple(KINDS))
    found = remove(kind) if clear else [each for each in entries() if kind in (None, each.kind)]
    total = sum(each.size for each in found) / MEGABYTE
    done = "removed from" if clear else "in"
    if found and not clear:
        shown = screen.table("kind", "what it is", "model", "files", "MiB")
        files, sizes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for each in found:
            files[each.kind, each.model] += 1
            sizes[each.kind, each.model] += each.size
        for (name, model), count in sorted(files.items()):
            size = f"{sizes[name, model] / MEGABYTE:.1f}"
            cells = name, KINDS[name], model or "-", count, size
            shown.add_row(*map(screen.plain, cells))
        screen.show(shown)
    screen.say(f"{len(found)} files, {total:.1f} MiB {done} {cache_folder()}")
