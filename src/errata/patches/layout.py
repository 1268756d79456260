"""`Layout`: the columns of a batch whose rows each get n more tokens, behind their padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the columns of a widened batch come from.

    Attributes:
        source: (batch, width + n), the given column to copy each new one from.
        slots: (batch, width + n) bool, True at the n inserted tokens of each row.
        given: (batch, width), the new column of each given one.
        starts: (batch,), the given column of each row's first token.
    """

    source: Tensor
    slots: Tensor
    given: Tensor
    starts: Tensor

    @classmethod
    def of(cls, mask: Tensor, n: int) -> Layout:
        """Return the layout for rows with this attention mask (batch, width) and n tokens."""
        starts = mask.ne(0).int().argmax(-1)
        start, width = starts[:, None], mask.shape[1]
        columns = torch.arange(width + n, device=mask.device)[None]
        slots = (columns >= start) & (columns < start + n)
        source = torch.where(columns >= start + n, columns - n, columns).clamp(max=width - 1)
        given = columns[:, :width]
        return cls(source, slots, torch.where(given >= start, given + n, given), starts)

    def widened(self, columns: Tensor) -> Tensor:
        """Widen (batch, width, ...) to (batch, width + n, ...); the slots are to be filled."""
        index = self.source.to(columns.device)
        index = index.reshape(*index.shape, *[1] * (columns.dim() - 2))
        return columns.gather(1, index.expand(-1, -1, *columns.shape[2:]))

    def filled(self, columns: Tensor, inserted: Tensor) -> Tensor:
        """Copy columns (batch, width + n, ...) with inserted ones in each row's slots.

        They are (n, ...), or (batch, n, ...) where rows have their own.
        """
        result = columns.clone()
        inserted = inserted.to(device=columns.device, dtype=columns.dtype)
        if inserted.dim() < columns.dim():
            inserted = inserted.expand(columns.shape[0], *inserted.shape)
        result[self.slots.to(columns.device)] = inserted.flatten(0, 1)
        return result

    def narrowed(self, columns: Tensor) -> Tensor:
        """Narrow (batch, width + n, features) to the given columns, (batch, width, features)."""
        index = self.given.to(columns.device)[..., None]
        return columns.gather(1, index.expand(-1, -1, columns.shape[-1]))
