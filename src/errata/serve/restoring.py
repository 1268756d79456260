"""Brings a model to the edits that it is to have, with as little writing as possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from errata.edit import Edit
from errata.model import EditModel


def by_id(edits: Sequence[Mapping[str, Any]]) -> dict[str, Edit]:
    """Return edits of a ledger, by their ids."""
    found = (Edit.from_ledger(edit) for edit in edits)
    return {edit.id: edit for edit in found}


def bring_to(
    model: EditModel,
    wanted: Sequence[Edit],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Undo and write edits until the model has those wanted, written in their order."""
    there, names = [edit.id for edit in model.edits], [edit.id for edit in wanted]
    kept = [name for name in there if name in set(names)]
    if names[: len(kept)] != kept:  # they were written in another order
        kept = []
    if gone := set(there) - set(kept):
        model.undo([name for name in there if name in gone])
    done = len(kept)

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress(done, len(names))

    if rest := wanted[done:]:
        model.edit(rest, check=False, progress=more)
