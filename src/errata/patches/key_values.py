"""`KeyValues`: tensors of each edit beside one linear module, whose output they are added to.

What is stored is told apart by edit, so an edit comes out as it went in. Every token is looked up
by itself: the prompt, the batch and a cache make no difference. When a token gets what is a
subclass's to say.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.patches.base import Patch
from errata.patches.shared_rows import where_rows

TOKENS = 256
"""Tokens that are looked up at once, at most: what all keys make of these is in memory."""


class KeyValues(Patch):
    """Keys, values and the like, each with a row for every pair, beside one linear module.

    Args:
        path: the module's full dotted name, see `Architecture.value_path`.

    Attributes:
        columns: edit id -> its tensors (pairs, ...), in fp32 on the CPU; the latest edit last.
        superseded: ids of edits whose tensors do not count, see `supersede`.
    """

    shares_rows = True

    def __init__(self, path: str) -> None:
        self.path = path
        self.columns: dict[str, tuple[Tensor, ...]] = {}
        self.superseded: frozenset[str] = frozenset()
        self._stacked: tuple[Tensor, ...] | None = None
        self._handle: RemovableHandle | None = None

    def add(self, edit_id: str, *tensors: Tensor) -> None:
        """Store the tensors of an edit, (pairs, ...) each."""
        self.columns[edit_id] = tuple(tensor.detach().float().cpu() for tensor in tensors)
        self._stacked = None

    def drop(self, edit_ids: Iterable[str]) -> None:
        """Take edits out."""
        for edit_id in edit_ids:
            del self.columns[edit_id]
        self._stacked = None

    def supersede(self, edit_ids: Iterable[str]) -> None:
        """Let these edits not count, and all others; later ones have taken their place."""
        self.superseded = frozenset(edit_ids)
        self._stacked = None

    def stacked(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors that count, (all pairs, ...) each, on a device; the latest first."""
        stacked = self._stacked
        if stacked is None or stacked[0].device != device:
            counting = [
                column
                for edit_id, column in reversed(self.columns.items())
                if edit_id not in self.superseded
            ]
            columns = zip(*counting, strict=True)
            stacked = self._stacked = tuple(torch.cat(each).to(device) for each in columns)
        return stacked

    @abstractmethod
    def added(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is added to the output (tokens, d_out), and to which tokens, (tokens,) bool.

        Args:
            keys: (tokens, d_in), in fp32; `TOKENS` of them at most.
        """

    def _attach(self, lm: LM) -> None:
        self._handle = lm.model.get_submodule(self.path).register_forward_hook(self._answer)

    def _detach(self, lm: LM) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def _answer(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        rows = self.rows()
        if not self.columns or rows is False:
            return None
        keys, outputs = args[0].reshape(-1, args[0].shape[-1]), output.reshape(-1, output.shape[-1])
        parts = []
        for part, before in zip(
            *(torch.split(each, TOKENS) for each in (keys, outputs)), strict=True
        ):
            added, there = self.added(part.float())
            after = (before.float() + added).to(output.dtype)
            parts.append(torch.where(there[:, None], after, before))
        changed = torch.cat(parts).view_as(output)
        return changed if rows is True else where_rows(rows, changed, output)
