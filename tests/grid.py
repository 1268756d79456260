"""Which cells of a grid the default run takes: few that meet all that matters; others are `grid`.

`make test-all` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, get_type_hints

import pytest

import errata
from errata.patches.base import Patch
from errata.patches.routed import RoutedPatch

Cell = tuple[Any, ...]


def patch_kind(method: str) -> type[Patch]:
    """The kind of patch that a method leaves behind, as it says itself: those that hook a model
    alike are one.
    """
    kind: type[Patch] = get_type_hints(errata.method_class(method).patch.fget)["return"]
    like_contexts = ("FolioMemory", "KeyValuePrefix", "PassageReader")
    if kind.__name__ in like_contexts:  # found as contexts are, and do more, or other things
        return kind
    return next((base for base in kind.__mro__ if {Patch, RoutedPatch} & {*base.__bases__}), Patch)


def token_places(family: str) -> str:
    """How a family knows where a token stands, so what padding and caches may get wrong."""
    special = {
        "gpt2": "learned",
        "gpt_neo": "learned",
        "opt": "learned",
        "bloom": "alibi",
        "mpt": "alibi",
    }
    return special.get(family, "rotary")


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
