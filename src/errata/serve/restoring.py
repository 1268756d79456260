"""Brings a model and a ledger together, with as little writing as possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from errata.edit import Edit
from errata.errors import BaseMismatchError
from errata.model import EditModel
from errata.serve.ledger import BEGIN, EDIT, BehindError, Ledger
from errata.storage.cache import fingerprint


def begin(model: EditModel, ledger: Ledger, actor: str) -> None:
    """Make sure that a ledger is this model's; begin one that is empty with the model's edits.

    Raises:
        BaseMismatchError: it is another's.
    """
    with model.disable_edits():
        of = {"base": fingerprint(model.base), "method": model.method.config.method}
    if not ledger.version:
        with suppress(BehindError):  # another server was first
            ledger.append(actor, BEGIN, of, after=0)
            if model.edits:
                edits = [edit.to_dict() for edit in model.edits]
                ledger.append(actor, EDIT, {"edits": edits}, after=1)
    found = ledger.entries(most=1)[0].body
    if found != of:
        raise BaseMismatchError(
            f"the ledger is of the base model {found.get('base')} and the method "
            f"{found.get('method')}; this is {of['base']} with {of['method']}. Give another "
            "--store, or the model that it belongs to."
        )


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
