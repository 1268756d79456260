"""Which cells of a grid the default run takes: as few as meet each thing that matters. The others
are marked `grid`.

`make test-all` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, get_type_hints

import pytest

import errata
from errata.patches.base import Patch

Cell = tuple[Any, ...]


def patch_kind(method: str) -> type[Patch]:
    """The kind of patch that a method leaves behind, as it says itself."""
    kind: type[Patch] = get_type_hints(errata.method_class(method).patch.fget)["return"]
    return kind


def token_places(family: str) -> str:
    """How a family knows where a token stands, and what its cache keeps of it."""
    special = {
        "gpt2": "learned",
        "gpt_neo": "learned",
        "opt": "learned",
        "bloom": "alibi",
        "mpt": "alibi",
    }
    return special.get(family, "sliding" if family.startswith("gemma2") else "rotary")


def covering(cells: Sequence[Cell], matters: Callable[..., set[Hashable]]) -> list[int]:
    """Places of cells that together meet all that matters to any: always the one that meets the
    most of what is missing.
    """
    met = [matters(*cell) for cell in cells]
    missing, picked = set().union(*met), []
    while missing:
        best = max(range(len(cells)), key=lambda place: len(met[place] & missing))
        picked.append(best)
        missing -= met[best]
    return sorted(picked)


def grid(
    names: str,
    cells: Sequence[Cell],
    matters: Callable[..., set[Hashable]],
    ids: Sequence[str] | None = None,
) -> pytest.MarkDecorator:
    """Parametrize over all cells; those that nothing needs are marked `grid`."""
    picked = set(covering(cells, matters))
    return pytest.mark.parametrize(
        names.split(),
        [
            pytest.param(
                *cell,
                id=ids[place] if ids else "-".join(map(str, cell)),
                marks=() if place in picked else pytest.mark.grid,
            )
            for place, cell in enumerate(cells)
        ],
    )
