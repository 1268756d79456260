"""The rule by which the default run picks cells of a grid, see `grid.py`."""

from __future__ import annotations

from families import TWELVE
from grid import covering, patch_kind, token_places

import errata


def test_fewest_cells_meet_all_that_matters() -> None:
    cells = [(row, column) for row in "abc" for column in range(4)]
    picked = [cells[place] for place in covering(cells, lambda row, column: {row, column})]
    assert (
        {row for row, _ in picked} == {*"abc"}
        and {column for _, column in picked} == {*range(4)}
        and len(picked) == 4
    )


def test_every_method_has_a_kind_of_patch_and_every_way_of_placing_tokens_a_family() -> None:
    kinds = {patch_kind(method).__name__ for method in errata.method_names()}
    assert kinds == {
        "RoutedModule",
        "FolioMemory",
        "WeightDelta",
        "ContextPatch",
        "AnswerStore",
        "KeyValuePrefix",
        "KeyValues",
        "PassageReader",
        "Pipeline",
        "Patch",
    }
    assert {token_places(family) for family in TWELVE} == {"rotary", "learned", "alibi"}
