"""`History`: the tokens of sequences over several calls, and which of them are the prompt."""

from __future__ import annotations

import copy
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.errors import ConfigError

MAX_PARTS = 32
"""Calls whose tokens wait to be joined, at most: each may keep all tokens of its call alive."""


class History:
    """The tokens that a batch of sequences was given, call after call.

    They are joined when somebody looks at them, and in most steps of an answer nobody does.

    Args:
        ids: (batch, columns), all tokens; None when they came as embeddings.
        seen: (batch, columns) bool, False at padding.
        prompt: (batch, columns) bool, True at the prompt; columns that it lacks are no prompt.

    Attributes:
        prompt: see above.
        size: batch and columns.
        notes: what follows from the prompt and from what was decided on it, until another follows.
    """

    def __init__(self, ids: Tensor | None, seen: Tensor, prompt: Tensor) -> None:
        self._parts: tuple[tuple[Tensor | None, Tensor], ...] = ((ids, seen),)
        self.prompt = prompt
        self.size: tuple[int, int] = (seen.shape[0], seen.shape[1])
        self.notes: dict[str, Any] = {}

    @property
    def ids(self) -> Tensor | None:
        """All tokens, (batch, columns); None when some came as embeddings."""
        return self._joined()[0]

    @property
    def seen(self) -> Tensor:
        """False at padding, (batch, columns) bool."""
        return self._joined()[1]

    @property
    def ends(self) -> tuple[int, ...]:
        """Each row's last column that is the prompt."""
        if "ends" not in self.notes:
            self.notes["ends"] = tuple(last_token(self.prompt).tolist())
        ends: tuple[int, ...] = self.notes["ends"]
        return ends

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """Each row's tokens that are the prompt; none where they came as embeddings."""
        if "prompts" not in self.notes:
            rows = [] if self.ids is None else self.ids.tolist()
            masks = self.prompt.tolist()
            self.notes["prompts"] = [
                tuple(compress(*each)) for each in zip(rows, masks, strict=False)
            ]
        prompts: list[tuple[int, ...]] = self.notes["prompts"]
        return prompts

    def behind(self, ids: Tensor | None, seen: Tensor) -> History:
        """Return the history with tokens of the answer behind it.

        Args:
            ids: (batch, more columns); None when they came as embeddings.
            seen: (batch, more columns), 0 or False at padding.
        """
        more = copy.copy(self)
        more._parts = (*self._parts, (ids, seen))
        more.size = (self.size[0], self.size[1] + seen.shape[1])
        if len(more._parts) > MAX_PARTS:
            more._joined()
        return more

    def resized(self, rows: int, columns: int) -> History:
        """Return the history of so many columns, and of so many rows, as beams have.

        Raises:
            ConfigError: `rows` is no multiple of the batch.
        """
        if self.size == (rows, columns):
            return self
        ids, seen = self._joined()
        ids = None if ids is None else repeated(ids, rows)[:, :columns]
        seen = resized(repeated(seen, rows), columns, True)
        return History(ids, seen, repeated(self.prompt, rows)[:, :columns])

    def _joined(self) -> tuple[Tensor | None, Tensor]:
        if len(self._parts) > 1:
            first = self._parts[0][1]
            seen = torch.cat([part.to(first) for _, part in self._parts], dim=1)
            some = [ids for ids, _ in self._parts if ids is not None]
            is_known = len(some) == len(self._parts)
            ids = torch.cat([each.to(first.device) for each in some], dim=1) if is_known else None
            self._parts = ((ids, seen),)
        return self._parts[0]


def last_token(mask: Tensor) -> Tensor:
    """Return the last True column of each row, (batch,), of a mask (batch, width)."""
    return (mask * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).argmax(-1)


def repeated(tensor: Tensor, rows: int) -> Tensor:
    """Repeat per-sequence data (batch, ...) for `rows` rows, as beams and several answers do.

    Raises:
        ConfigError: `rows` is no multiple of the batch.
    """
    if tensor.shape[0] == rows:
        return tensor
    if rows % tensor.shape[0]:
        raise ConfigError(
            f"{tensor.shape[0]} sequences were routed, then {rows} rows came with their cache."
        )
    return tensor.repeat_interleave(rows // tensor.shape[0], dim=0)


def resized(mask: Tensor, width: int, fill: bool) -> Tensor:
    """Cut a mask (batch, columns), or fill it up, to (batch, width)."""
    missing = width - mask.shape[1]
    return F.pad(mask, (0, missing), value=fill) if missing > 0 else mask[:, :width]
