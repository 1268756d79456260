"""A shard of WISE: one random subspace of the side memory, dense while it is written, folded
afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.edit import Edit


class Shard:
    """One random subspace of the side memory and what was written through it.

    While it is written it is dense; `fold` leaves its bits and the entries under them, and it
    unfolds where it is looked at.

    Attributes:
        index: its place among the shards; with the seed it decides the mask.
        edits: the edits in it, oldest first.
        slots: edits ever written into it; undone ones keep their place when later shards exist.
        stamp: changes whenever something is written.
    """

    def __init__(
        self, index: int, mask: Tensor, delta: Tensor, edits: Sequence[Edit] = (), slots: int = 0
    ) -> None:
        self.index = index
        self.edits = list(edits)
        self.slots = slots
        self.stamp = object()
        self._shape = mask.shape
        self._dense: tuple[Tensor, Tensor] | None = (mask, delta)
        self._folded: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_folded(
        cls,
        index: int,
        bits: Tensor,
        values: Tensor,
        shape: Sequence[int],
        edits: Sequence[Edit],
        slots: int,
    ) -> Shard:
        """The shard that `folded` described.

        Args:
            bits: (ceil(entries / 8),) uint8, on the CPU.
            values: (n,), the entries under the mask.
        """
        mask = unpack_mask(bits, shape).to(values.device)
        if int(mask.sum()) != len(values):
            raise ValueError(
                f"a mask of {int(mask.sum())} entries does not fit {len(values)} values."
            )
        delta = torch.zeros(*shape, device=values.device)
        delta[mask] = values.float()
        return cls(index, mask, delta, edits, slots)

    @property
    def mask(self) -> Tensor:
        """(d_out, d_in) bool, the entries it may change."""
        return self._unfolded()[0]

    @property
    def delta(self) -> Tensor:
        """(d_out, d_in) fp32, what it changed; zero outside the mask."""
        return self._unfolded()[1]

    def learned(self, delta: Tensor) -> None:
        """Take what was learned."""
        self._dense, self._folded, self.stamp = (self.mask, delta), None, object()

    def take(self, other: Shard) -> None:
        """Be what the same shard has become elsewhere."""
        self._folded, self._dense, self.stamp = other.folded(), None, object()
        self.edits, self.slots = list(other.edits), other.slots

    def folded(self) -> tuple[Tensor, Tensor]:
        """(the mask as bits, the entries under it)."""
        if self._folded is None:
            mask, delta = self._unfolded()
            return pack_mask(mask), delta[mask].contiguous()
        return self._folded

    def fold(self) -> None:
        """Keep no more than `folded`."""
        self._folded, self._dense = self.folded(), None

    def _unfolded(self) -> tuple[Tensor, Tensor]:
        if self._dense is not None:
            return self._dense
        bits, values = self.folded()
        return self.from_folded(self.index, bits, values, self._shape, (), 0)._unfolded()


def pack_mask(mask: Tensor) -> Tensor:
    """A bool mask as bits: uint8, (ceil(entries / 8),)."""
    bits = F.pad(mask.flatten().cpu().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask (d_out, d_in) that `pack_mask` packed.

    Raises:
        ValueError: the bits are not those of a matrix of this shape.
    """
    entries = shape[0] * shape[1]
    if packed.dtype != torch.uint8 or packed.numel() != -(-entries // 8):
        raise ValueError(
            f"a mask of {packed.numel()} bytes does not fit a matrix of {shape[0]} x {shape[1]}."
        )
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[:entries].bool().view(*shape)
