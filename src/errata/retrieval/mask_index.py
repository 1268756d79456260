"""`MaskIndex`: bit masks, and which of them is nearest to another by Hamming distance. It knows no
model and no edits.

A mask of 14,336 bits takes 1.8 kB. FAISS compares them all, 64 bits at a time; leaving one out
rebuilds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from errata.errors import ConfigError


class MaskIndex:
    """Masks in the order they were added; each is known by its place, and those behind a removed
    one move up.

    Args:
        width: bits of a mask.

    Raises:
        ConfigError: FAISS is not installed.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._faiss = _faiss()
        self._bytes = -(-width // 8)
        self._index = self._faiss.IndexBinaryFlat(8 * self._bytes)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, masks: Tensor) -> None:
        """Add masks (n, width), bool."""
        self.add_packed(pack(masks))

    def add_packed(self, packed: Tensor) -> None:
        """Add masks as `packed` gave them, (n, ceil(width / 8)) uint8.

        Raises:
            ValueError: they are of another width.
        """
        if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != self._bytes:
            raise ValueError(
                f"masks {tuple(packed.shape)} of {packed.dtype} do not fit an index of {self.width} bits."
            )
        self._index.add(packed.cpu().contiguous().numpy())

    def remove(self, places: Iterable[int]) -> None:
        """Leave out the masks at these places."""
        self._index.remove_ids(torch.tensor(sorted(set(places)), dtype=torch.long).numpy())

    def packed(self) -> Tensor:
        """All masks as bits: (n, ceil(width / 8)) uint8."""
        if not len(self):
            return torch.zeros(0, self._bytes, dtype=torch.uint8)
        return torch.from_numpy(self._faiss.vector_to_array(self._index.xb)).view(
            len(self), self._bytes
        )

    def masks(self, places: Tensor) -> Tensor:
        """The masks at places (n,): (n, width), bool, on the CPU."""
        return unpack(self.packed()[places.cpu()], self.width)

    def nearest(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """(Hamming distance, place) of what is nearest to each of masks (n, width), both (n,) on
        the CPU.

        Of masks at one distance, the latest counts. There must be one at least.
        """
        asked = pack(masks).numpy()
        distances = torch.from_numpy(self._index.search(asked, 1)[0])[:, 0].long()
        places = [
            int(self._index.range_search(asked[i : i + 1], int(distance) + 1)[2].max())
            for i, distance in enumerate(distances)
        ]
        return distances, torch.tensor(places, dtype=torch.long)


def pack(masks: Tensor) -> Tensor:
    """Masks (n, width), bool, as bits: (n, ceil(width / 8)) uint8, on the CPU."""
    bits = torch.nn.functional.pad(masks.cpu().to(torch.uint8), (0, -masks.shape[-1] % 8))
    return (bits.view(masks.shape[0], -1, 8) << torch.arange(8, dtype=torch.uint8)).sum(
        -1, dtype=torch.uint8
    )


def unpack(packed: Tensor, width: int) -> Tensor:
    """The masks (n, width) that `pack` packed."""
    bits = (packed[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1)[:, :width].bool()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("searching masks needs FAISS: pip install 'errata[index]'.") from error
    return faiss
