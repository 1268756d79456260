"""`MaskIndex`: bit masks, searched for the nearest by Hamming distance. It knows no model.

A mask of 14,336 bits takes 1.8 kB. FAISS compares all of them, 64 bits at a time; removing one
rebuilds nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from errata.errors import ConfigError


class MaskIndex:
    """Masks in the order in which they were added, each known by its place.

    When a mask is removed, those behind it move up.

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
        """Add masks as `packed` returns them, (n, ceil(width / 8)) uint8.

        Raises:
            ValueError: they are of another width.
        """
        if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != self._bytes:
            raise ValueError(
                f"masks {tuple(packed.shape)} of {packed.dtype} "
                f"do not fit an index of {self.width} bits."
            )
        self._index.add(packed.cpu().contiguous().numpy())

    def remove(self, places: Iterable[int]) -> None:
        """Remove the masks at these places."""
        self._index.remove_ids(torch.tensor(sorted(set(places)), dtype=torch.long).numpy())

    def packed(self) -> Tensor:
        """Return all masks as bits, (n, ceil(width / 8)) uint8 on the CPU."""
        if not len(self):
            return torch.zeros(0, self._bytes, dtype=torch.uint8)
        return torch.from_numpy(self._faiss.vector_to_array(self._index.xb)).view(
            len(self), self._bytes
        )

    def masks(self, places: Tensor) -> Tensor:
        """Return the masks at places (n,): (n, width), bool, on the CPU."""
        return unpack(self.packed()[places.cpu()], self.width)

    def nearest(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest stored mask of each of masks (n, width), bool.

        Of equally near ones, the one added last. At least one must be stored.

        Returns:
            Hamming distances (n,) and places (n,), int64, on the CPU.
        """
        queries = pack(masks).numpy()
        distances = torch.from_numpy(self._index.search(queries, 1)[0])[:, 0].long()
        places = [
            int(self._index.range_search(queries[i : i + 1], int(distance) + 1)[2].max())
            for i, distance in enumerate(distances)
        ]
        return distances, torch.tensor(places, dtype=torch.long)


def pack(masks: Tensor) -> Tensor:
    """Return masks (n, width), bool, as bits: (n, ceil(width / 8)) uint8, on the CPU."""
    bits = torch.nn.functional.pad(masks.cpu().to(torch.uint8), (0, -masks.shape[-1] % 8))
    return (bits.view(masks.shape[0], -1, 8) << torch.arange(8, dtype=torch.uint8)).sum(
        -1, dtype=torch.uint8
    )


def unpack(packed: Tensor, width: int) -> Tensor:
    """Return the masks (n, width), bool, that `pack` packed."""
    bits = (packed[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1)[:, :width].bool()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("searching masks needs FAISS: pip install 'errata[index]'.") from error
    return faiss
