"""The memory of one model: vectors at every layer, some of which make room for new ones.

This knows no model and no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pool:
    """Memory vectors, and those that were dropped.

    Attributes:
        vectors: (layers, N, hidden), fp32; the latest last.
        dropped: (layers, M, hidden), fp32 on the CPU, the latest last; M is 0 where they are not
            kept.
    """

    vectors: Tensor
    dropped: Tensor

    def updated(self, new: Tensor, generator: torch.Generator, keep_dropped: bool) -> Pool:
        """Return the memory with new vectors, for which as many at each layer make room.

        Args:
            new: (layers, K, hidden).
            generator: draws which are dropped.
            keep_dropped: put them to the dropped ones.
        """
        layers, size, _ = self.vectors.shape
        kept = survivors(layers, size, new.shape[1], generator)
        vectors = torch.cat([picked(self.vectors, kept), new.to(self.vectors)], dim=1)
        if not keep_dropped:
            return Pool(vectors, self.dropped)
        gone = torch.ones(layers, size, dtype=torch.bool).scatter(1, kept, False)
        places = gone.nonzero()[:, 1].view(layers, -1)
        more = picked(self.vectors, places).to(self.dropped)
        return Pool(vectors, torch.cat([self.dropped, more], dim=1))


def survivors(layers: int, size: int, drop: int, generator: torch.Generator) -> Tensor:
    """Draw which of `size` vectors stay when `drop` go, (layers, size - drop), in their order."""
    drawn = [torch.randperm(size, generator=generator)[drop:] for _ in range(layers)]
    return torch.stack(drawn).sort(-1).values


def picked(vectors: Tensor, places: Tensor) -> Tensor:
    """Return the vectors (layers, k, hidden) at places (layers, k) of (layers, n, hidden)."""
    index = places.to(vectors.device)[..., None]
    return vectors.gather(1, index.expand(-1, -1, vectors.shape[-1]))


def after_updates(layers: int, size: int, new: int, times: int, draw: torch.Generator) -> Tensor:
    """Draw what is in a memory of `size` vectors after `times` updates by `new` each.

    Returns:
        (layers, size): places below `size` are old vectors, `size + i * new + j` is the j-th of the
        i-th update.
    """
    places = torch.arange(size).expand(layers, size)
    for i in range(times):
        kept = places.gather(1, survivors(layers, size, new, draw))
        first = size + i * new
        places = torch.cat([kept, torch.arange(first, first + new).expand(layers, new)], dim=1)
    return places
