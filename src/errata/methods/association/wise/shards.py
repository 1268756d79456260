"""`Shard`: one random subspace of WISE's side memory, dense in training, packed afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.edit import Edit


class Shard:
    """One random subspace of the side memory, and the edits written through it.

    It is dense while it is written; `pack` keeps only the mask's bits and the entries under it, and
    they are unpacked where they are read.

    Attributes:
        index: its place among the shards; with the seed it decides the mask.
        edits: the edits in it, oldest first.
        slots: edits ever written into it; undone ones keep their place when later shards exist.
        version: another object after each change of `delta`.
    """

    def __init__(
        self, index: int, mask: Tensor, delta: Tensor, edits: Sequence[Edit] = (), slots: int = 0
    ) -> None:
        self.index = index
        self.edits = list(edits)
        self.slots = slots
        self.version = object()
        self._shape = mask.shape
        self._dense: tuple[Tensor, Tensor] | None = (mask, delta)
        self._packed: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_packed(
        cls,
        index: int,
        bits: Tensor,
        values: Tensor,
        shape: Sequence[int],
        edits: Sequence[Edit],
        slots: int,
    ) -> Shard:
        """Make a shard from what `packed` returned.

        Args:
            bits: (ceil(entries / 8),) uint8, on the CPU.
            values: (n,), the entries under the mask.

        Raises:
            ValueError: bits, values and shape do not fit each other.
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
        return self._unpacked()[0]

    @property
    def delta(self) -> Tensor:
        """(d_out, d_in) fp32, the change; zero outside the mask."""
        return self._unpacked()[1]

    @delta.setter
    def delta(self, delta: Tensor) -> None:
        self._dense, self._packed, self.version = (self.mask, delta), None, object()

    def update_from(self, other: Shard) -> None:
        """Take the state of the same shard, as it was trained elsewhere."""
        self._packed, self._dense, self.version = other.packed(), None, object()
        self.edits, self.slots = list(other.edits), other.slots

    def packed(self) -> tuple[Tensor, Tensor]:
        """Return (the mask as bits, the entries under it)."""
        if self._packed is None:
            mask, delta = self._unpacked()
            return pack_mask(mask), delta[mask].contiguous()
        return self._packed

    def pack(self) -> None:
        """Keep only what `packed` returns."""
        self._packed, self._dense = self.packed(), None

    def _unpacked(self) -> tuple[Tensor, Tensor]:
        if self._dense is not None:
            return self._dense
        bits, values = self.packed()
        return self.from_packed(self.index, bits, values, self._shape, (), 0)._unpacked()


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask into bits: uint8, (ceil(entries / 8),)."""
    bits = F.pad(mask.flatten().cpu().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the mask (d_out, d_in) that `pack_mask` packed.

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
