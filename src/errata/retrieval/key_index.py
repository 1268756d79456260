"""`KeyIndex`: vectors by number, searched for the nearest by Euclidean distance. It knows no model.

Answers are exact. A lookup is fast all the same, because it reads a sketch of each key instead of
the key: its coordinates in `SKETCH` orthonormal directions (the principal ones of the keys) and the
length of what remains. By the triangle inequality two sketches are never farther apart than their
keys. So true distances are computed only for the keys with the nearest sketches, until no other key
can be nearer. With a bound on the distance (`within`), which a memory with radii has, these are
few. Where they would be too many, as among keys that are all equally far apart, all keys are read
in order, as a flat index does.

It is one matrix-vector product: 100,000 sketches are 26 MB, where the keys of a large model are
1.6 GB. A search library was measured beside it (`benchmarks/index.py`) and reads the same sketches
no faster, so there is nothing to install.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from errata.storage import state

SKETCH = 63
"""Directions of a sketch; with the length of the rest it has 64 numbers."""
FEW = 1024
"""Up to this many keys, the keys themselves are read."""
SAMPLE = 1024
"""Keys that the directions are computed from."""
FIRST = 32
"""Candidates whose true distance is computed first."""
MANY = 16
"""If the sketches leave more than one key in this many, all keys are read in one go."""
SLACK = 1e-5
"""Rounding error of a squared distance computed in fp32, as a share of the squared lengths."""
QUERIES = 64
"""Queries that are answered together."""


def rounding(dtype: torch.dtype) -> float:
    """Return how far a key may be from itself, as a share of its length.

    A model of this precision computes it slightly differently in another batch or padding.
    """
    return max(1e-5, 4 * torch.finfo(dtype).eps)


class KeyIndex:
    """Keys (width,) in fp32, each under a number of its own.

    Args:
        width: length of a key.
        device: where the keys are kept and searched.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.width = width
        self.device = torch.device(device)
        self._slots: dict[int, int] = {}
        self._keys = torch.zeros(0, width, device=device)
        self._ids = torch.zeros(0, dtype=torch.long, device=device)
        self._center = torch.zeros(width, device=device)
        self._axes: Tensor | None = None
        self._sketches = self._keys
        self._squares = torch.zeros(0, device=device)
        self._fitted = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, number: int) -> bool:
        return number in self._slots

    @property
    def ids(self) -> list[int]:
        """The numbers of all keys, smallest first."""
        return sorted(self._slots)

    def keys_of(self, ids: Sequence[int]) -> Tensor:
        """Return the keys (n, width) of these numbers.

        Raises:
            KeyError: there is no key under one of them.
        """
        return self._keys[[self._slots[number] for number in ids]]

    def add(self, ids: Sequence[int], keys: Tensor) -> None:
        """Store keys (n, width) under new numbers.

        Raises:
            ValueError: the keys have another width, or a number is taken.
        """
        if keys.shape != (len(ids), self.width):
            raise ValueError(
                f"{len(ids)} numbers and keys of shape {tuple(keys.shape)}; "
                f"expected ({len(ids)}, {self.width})."
            )
        if len(set(ids)) < len(ids) or any(number in self._slots for number in ids):
            raise ValueError("a key is stored under this number already.")
        begin, end = len(self), len(self) + len(ids)
        if end > len(self._keys):
            self._grow(max(end, begin * 2))
        self._keys[begin:end] = keys.detach().to(self._keys)
        self._ids[begin:end] = torch.tensor(list(ids), dtype=torch.long)
        self._slots.update(zip(ids, range(begin, end), strict=True))
        if end > FEW and end > 2 * self._fitted:
            self._fit()
        else:
            self._sketch(begin, end)

    def remove(self, ids: Sequence[int]) -> None:
        """Remove keys. The last key takes the slot of each; nothing else moves.

        Raises:
            KeyError: there is no key under one of the numbers; nothing is removed then.
        """
        for number in ids:
            self._slots[number]
        for number in ids:
            slot, last = self._slots.pop(number), len(self._slots)
            if slot != last:
                self._slots[int(self._ids[last])] = slot
                for column in (
                    self._keys,
                    self._ids,
                    self._squares,
                    *([] if self._axes is None else [self._sketches]),
                ):
                    column[slot] = column[last]

    @torch.no_grad()
    def nearest(
        self, queries: Tensor, k: int = 1, within: float = math.inf
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest keys of each query, nearest first; of equals, the larger number first.

        Args:
            queries: (batch, width).
            k: how many.
            within: keys farther than that are left out.

        Returns:
            Distances (batch, k) in float64 and numbers (batch, k) in int64; inf and -1 where there
            are fewer than k.
        """
        queries = queries.detach().to(self._keys)
        distances = torch.full((len(queries), k), math.inf, dtype=torch.float64, device=self.device)
        ids = torch.full((len(queries), k), -1, dtype=torch.long, device=self.device)
        if self._slots and within >= 0:
            for start in range(0, len(queries), QUERIES):
                part = queries[start : start + QUERIES]
                for row, (query, bounds) in enumerate(
                    zip(part, self._bounds(part), strict=True), start
                ):
                    near, numbers = self._search(query, bounds, k, within)
                    distances[row, : len(near)], ids[row, : len(near)] = near, numbers
        return distances, ids

    def state(self) -> dict[str, Tensor]:
        """Return `ids` (n,) int64 and `keys` (n, width), smallest number first, on the CPU."""
        ids = self.ids
        return {"ids": torch.tensor(ids, dtype=torch.long), "keys": self.keys_of(ids).cpu()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore from `state()`; what was stored before is gone.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """
        fresh = KeyIndex(self.width, self.device)
        ids = state.numbers(tensors, "ids", None, 0, 2**62)
        if len(set(ids)) < len(ids):
            raise ValueError("'ids' has one twice")
        fresh.add(ids, state.tensor(tensors, "keys", (len(ids), self.width)))
        self.__dict__.update(fresh.__dict__)

    # the search

    def _bounds(self, queries: Tensor) -> Tensor:
        """Return lower bounds of the squared distance of each key, (batch, n)."""
        sketches, squares = self._sketched(queries)
        size = len(self)
        sums = self._squares[:size] + squares[:, None]
        products = (
            (self._sketches[:size] @ sketches[0])[None]
            if len(queries) == 1
            else sketches @ self._sketches[:size].t()
        )
        return sums.mul(1 - SLACK).sub_(products, alpha=2)

    def _search(
        self, query: Tensor, bounds: Tensor, k: int, within: float
    ) -> tuple[Tensor, Tensor]:
        """Return distances and numbers of up to k nearest keys, given lower bounds (n,)."""
        count = min(len(bounds), max(FIRST, 2 * k))
        slots = bounds.topk(count, largest=False).indices
        distances = self._distances(query, slots)
        reach = self._reach(distances, k, within)
        rest = bounds <= reach * reach
        rest[slots] = False
        if int(rest.sum()) > max(count, len(bounds) // MANY):
            bounds = self._close_bounds(query)
            rest &= bounds <= reach * reach
        more = rest.nonzero()[:, 0]
        more = more[bounds[more].argsort()]
        for start in range(0, len(more), FEW):
            part = more[start : start + FEW]
            if float(bounds[part[0]]) > reach * reach:
                break
            slots = torch.cat([slots, part])
            distances = torch.cat([distances, self._distances(query, part)])
            reach = self._reach(distances, k, within)
        near = distances <= reach
        slots, distances = slots[near], distances[near]
        ids, order = self._ids[slots].sort(descending=True)
        distances, order = distances[order].sort(stable=True)
        return distances[:k], ids[order][:k]

    def _close_bounds(self, query: Tensor) -> Tensor:
        """Return squared distances (n,) that are too short by no more than rounding.

        It reads all keys.
        """
        size, moved = len(self), query - self._center
        products = self._keys[:size] @ moved - self._center @ moved
        lengths = self._squares[:size] + moved.square().sum()
        return lengths - 2 * products - SLACK * (lengths + self._center.square().sum())

    def _distances(self, query: Tensor, slots: Tensor) -> Tensor:
        distances: Tensor = torch.linalg.vector_norm(
            self._keys[slots] - query, dim=-1, dtype=torch.float64
        )
        return distances

    @staticmethod
    def _reach(distances: Tensor, k: int, within: float) -> float:
        """Return the distance up to which a key can still be among the k nearest."""
        return within if len(distances) < k else min(within, float(distances.kthvalue(k).values))

    # the sketches

    def _sketched(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return sketches (n, SKETCH + 1) and squared lengths (n,) of keys (n, width)."""
        keys = keys - self._center
        if self._axes is None:
            return keys, keys.square().sum(-1)
        inside = keys @ self._axes.t()
        outside = (keys - inside @ self._axes).norm(dim=-1, keepdim=True)
        sketches = torch.cat([inside, outside], dim=-1)
        return sketches, sketches.square().sum(-1)

    def _sketch(self, begin: int, end: int) -> None:
        """Compute the sketches of the keys in these slots."""
        for start in range(begin, end, FEW):
            part = slice(start, min(end, start + FEW))
            sketches, self._squares[part] = self._sketched(self._keys[part])
            if self._axes is not None:
                self._sketches[part] = sketches

    @torch.no_grad()
    def _fit(self) -> None:
        """Compute the principal directions of a sample of the keys, and sketch all keys anew.

        It is done each time their number has doubled.
        """
        size = self._fitted = len(self)
        if self.width > 2 * SKETCH:
            sample = self._keys[torch.linspace(0, size - 1, SAMPLE, device=self.device).long()]
            self._center = sample.mean(0)
            sample = sample - self._center
            gram = (sample @ sample.t()).double()
            directions = torch.linalg.eigh(gram).eigenvectors[:, -SKETCH:].to(sample)
            basis = torch.linalg.qr((directions.t() @ sample).t().double()).Q
            self._axes = basis.t().to(sample).contiguous()
            self._sketches = self._keys.new_zeros(len(self._keys), SKETCH + 1)
        self._sketch(0, size)

    def _grow(self, slots: int) -> None:
        """Make room for this many keys in all."""

        def grown(column: Tensor) -> Tensor:
            longer = column.new_zeros(slots, *column.shape[1:])
            longer[: len(self)] = column[: len(self)]
            return longer

        self._keys, self._ids = grown(self._keys), grown(self._ids)
        self._squares = grown(self._squares)
        self._sketches = self._keys if self._axes is None else grown(self._sketches)
