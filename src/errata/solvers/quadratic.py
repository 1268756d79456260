"""The least-squares problem with non-negative unknowns, for a handful of them."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-9


def nonnegative_minimum(matrix: Tensor, linear: Tensor) -> Tensor:
    """Return the v >= 0 that minimises 1/2 v^T Q v + p^T v, by active sets.

    Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23, on the normal equations.
    It is exact up to rounding; unknowns enter one by one, so it is meant for tens of them.

    Args:
        matrix: Q, (t, t), symmetric, not negative.
        linear: p, (t,).
    """
    q, p = matrix.double(), linear.double()
    scale = float(q.diagonal().max().clamp(min=1e-300)) if len(p) else 1.0
    q, p = q / scale, p / scale
    found, free = torch.zeros_like(p), torch.zeros(len(p), dtype=torch.bool)
    for _ in range(10 * len(p)):
        slope = -(q @ found + p)
        slope[free] = -torch.inf
        if not bool((slope > TOLERANCE * p.abs().max()).any()):
            break
        free[int(slope.argmax())] = True
        while True:
            wanted = torch.zeros_like(p)
            wanted[free] = torch.linalg.lstsq(q[free][:, free], -p[free], driver="gelsd").solution
            below = free & (wanted <= 0)
            if not bool(below.any()):
                break
            share = (found / (found - wanted).clamp(min=1e-300))[below].min()
            found = found + share * (wanted - found)
            free &= found > TOLERANCE * found.abs().max().clamp(min=1e-300)
            found[~free] = 0.0
            if not bool(free.any()):
                break
        found = wanted
    return found
