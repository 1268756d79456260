"""`Projector`: keeps changes of a matrix out of the directions that old knowledge uses.

A change D (d_out, d_in) of a matrix alters the output for a key k by D k. Without the directions U
that old keys span, D - D U U^T alters no output for any of them. That is gradient projection memory
(Saha et al., arXiv 2103.09762) with U from a task's inputs, AlphaEdit (arXiv 2410.02355) with U
from background text, and orthogonal gradient descent (Farajtabar et al., arXiv 1910.07104) where a
"key" is the gradient of an old answer by all weights, and a change one row.
"""

from __future__ import annotations

import torch
from torch import Tensor

NULL_SPACE_SHARE = 0.01
"""The free directions hold at most this share of the trace, unless a threshold is given."""
SMALLEST = 1e-6
"""A direction counts as new where a key's part in it is longer, as a share of the longest key."""


class Projector:
    """Directions that are preserved, and those that are free.

    Args:
        width: d, the length of a key.

    Attributes:
        preserved: (d, kept), orthonormal; none at first.
        variance: the mean squared length of the keys in the free directions, from `fit_moment`.
    """

    def __init__(self, width: int) -> None:
        self.preserved = torch.zeros(width, 0)
        self.variance = 0.0
        self._free: Tensor | None = None

    def fit(self, keys: Tensor, energy: float = 1.0) -> None:
        """Preserve what keys span, beside what is preserved already.

        Args:
            keys: (n, d); what is preserved afterwards has their dtype.
            energy: the share of the keys' summed squares that shall lie in preserved directions;
                the strongest new ones are taken until it does.
        """
        known = self.preserved.to(keys)
        rest = keys - keys @ known @ known.T
        rest = rest - rest @ known @ known.T  # what rounding left of the first time
        _, sizes, directions = torch.linalg.svd(rest, full_matrices=False)
        total, squares = keys.square().sum(), sizes.square()
        missing = (energy - 1) * total + squares.sum() - squares.cumsum(0) + squares
        longest = keys.norm(dim=1).max() if len(keys) else keys.new_zeros(())
        new = (missing > 0) & (sizes > SMALLEST * longest)
        self.preserved, self._free = torch.cat([known, directions[new].T], dim=1), None

    def fit_moment(self, moment: Tensor, threshold: float | None = None) -> None:
        """Preserve the directions that keys use, by their second moment; in fp64, and only those.

        Args:
            moment: C = E[k k^T], (d, d).
            threshold: directions with a singular value of C below it are free. It is in squared
                units of the keys, so it fits one layer only. None: those are free that together
                hold a hundredth of C's trace.
        """
        values, vectors = torch.linalg.eigh(moment.double())
        values = values.clamp(min=0)
        if threshold is None:
            free = values.cumsum(0) <= NULL_SPACE_SHARE * values.sum()
        else:
            free = values < threshold
        self.preserved, self._free = vectors[:, ~free], vectors[:, free]
        self.variance = max(float(values[free].sum()), 1e-9)

    def project(self, change: Tensor) -> Tensor:
        """Return a change, or a gradient, (..., d), without its part in preserved directions."""
        preserved = self.preserved.to(change)
        return change - change @ preserved @ preserved.T

    @property
    def free(self) -> Tensor:
        """(d, rank), an orthonormal basis of the free directions."""
        if self._free is None:
            kept = self.preserved.shape[1]
            self._free = torch.linalg.qr(self.preserved, mode="complete").Q[:, kept:]
        return self._free

    @property
    def rank(self) -> int:
        """The number of free directions."""
        return self.preserved.shape[0] - self.preserved.shape[1]
