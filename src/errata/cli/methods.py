"""`errata methods`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from errata.cli import screen


def methods(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the editing methods and what each can do."""
    from errata import method_class, method_names

    rows: list[dict[str, Any]] = []
    for name in method_names():
        method = method_class(name)
        needs = [
            what
            for what in ("subject", "statistics", "training")
            if getattr(method, f"needs_{what}")
        ]
        rows.append(
            {
                "name": name,
                "variants": {
                    variant: dict(settings) for variant, settings in method.variants.items()
                },
                "phase": method.phase,
                "operations": [*method.operations],
                "undo": method.undo_is,
                "needs": needs,
                "paper": method.paper,
            }
        )
    if as_json:
        screen.print_json(rows)
        return
    shown = screen.table(*rows[0])
    for row in rows:
        row = {
            **row,
            "variants": ", ".join(row["variants"]),
            "operations": ", ".join(row["operations"]),
            "needs": ", ".join(row["needs"]) or "nothing",
        }
        shown.add_row(*(screen.plain(text) for text in row.values()))
    screen.show(shown)
