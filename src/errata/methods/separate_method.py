"""`SeparateMethod`: a method that solves for each edit on the base model alone.

Neither the order nor the number of the other edits matters, and an edit is undone by taking out
what was stored for it. Of several edits of one prompt only the latest counts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from torch import Tensor

from errata.edit import Edit
from errata.methods.base import Method, Progress, no_progress
from errata.patches.key_values import KeyValues


class SeparateMethod(Method):
    """A method whose edits are keys and values of their own beside one linear module."""

    @property
    @abstractmethod
    def patch(self) -> KeyValues:
        """The keys and values."""

    @abstractmethod
    def solve(self, edit: Edit) -> tuple[Tensor, ...]:
        """Return what is stored for an edit, (pairs, ...) each; see `KeyValues.add`."""

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, each solved for on the base model."""
        for edit in edits:
            self.patch.add(edit.id, *self.solve(edit))
            self._edits.append(edit)
            self._let_latest_count()
            progress(1)

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self.patch.drop(list(self.patch.columns))
        self._let_latest_count()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        removed = self.check_ids(edit_ids)
        self.patch.drop(removed)
        self._edits = [edit for edit in self._edits if edit.id not in removed]
        self._let_latest_count()

    def restore(self, edits: Sequence[Edit], columns: Iterable[tuple[Tensor, ...]]) -> None:
        """Be what these edits, with the tensors of each, have made of it."""
        self.clear()
        for edit, column in zip(edits, columns, strict=True):
            self.patch.add(edit.id, *column)
        self._edits = list(edits)
        self._let_latest_count()

    def _let_latest_count(self) -> None:
        latest = {edit.prompt: edit.id for edit in self._edits}
        self.patch.supersede(e.id for e in self._edits if latest[e.prompt] != e.id)
