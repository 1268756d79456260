"""`Eraser`: takes a concept out of states in closed form, with the least change (LEACE).

Least-squares concept erasure, Belrose et al., NeurIPS 2023, arXiv 2306.03819: among all affine maps
after which no linear classifier can tell the concept, the one that moves states least:

    r(x) = x - W+ P W (x - m),   W = (C^1/2)+,   P the projector on the columns of W c

where m and C are mean and covariance of the states, c their covariance with the concept, and + is
the pseudoinverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from errata.lm.weights import add_to_weight, read_bias, read_weight

TOLERANCE = 1e-10
"""A share of the largest eigenvalue, below which one counts as zero."""


@dataclass(frozen=True)
class Eraser:
    """The map x -> x - left right (x - mean), in float64.

    Attributes:
        mean: (width,), of the states.
        left: (width, k), the directions in which states move.
        right: (k, width), what is read of a state to move it; k is at most the concept's columns.
    """

    mean: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def fit(cls, states: Tensor, concept: Tensor) -> Eraser:
        """Fit the map.

        Args:
            states: (n, width).
            concept: (n,) or (n, columns), numbers; of more than two classes, one-hot.

        Raises:
            ValueError: the states are no matrix, or there is not one row of the concept for each.
        """
        x, z = states.double(), concept.double().reshape(len(concept), -1)
        if x.dim() != 2 or len(x) != len(z) or not len(x):
            raise ValueError(f"states {tuple(x.shape)} and concept {tuple(z.shape)} do not fit.")
        mean = x.mean(0)
        x, z = x - mean, z - z.mean(0)
        variances, axes = torch.linalg.eigh(x.T @ x / len(x))
        roots = variances.clamp(min=0).sqrt()
        inverses = torch.where(variances > TOLERANCE * variances.max(), 1 / roots, 0.0)
        whiten = (axes * inverses) @ axes.T
        colour = (axes * (roots * (inverses > 0))) @ axes.T
        told, strengths, _ = torch.linalg.svd(whiten @ (x.T @ z / len(x)), full_matrices=False)
        told = told[:, strengths > TOLERANCE * z.std(0, correction=0).max().clamp(min=1e-300)]
        return cls(mean, colour @ told, told.T @ whiten)

    @classmethod
    def random(cls, states: Tensor, seed: int) -> Eraser:
        """Fit the map on a concept that is not there, as a control: one drawn at random."""
        generator = torch.Generator().manual_seed(seed)
        return cls.fit(states, torch.randn(len(states), generator=generator).to(states.device))

    def __call__(self, states: Tensor) -> Tensor:
        """Return states (..., width) without the concept, in their own type."""
        mean, left, right = (each.to(states.device) for each in (self.mean, self.left, self.right))
        x = states.double()
        return (x - (x - mean) @ right.T @ left.T).to(states.dtype)

    def fold(self, module: nn.Module) -> None:
        """Put the map into a linear module's own weights, so that its outputs have no concept.

        Where the module has no bias, outputs lack the constant `left right mean`: the concept is
        gone from them all the same, but their mean moves.

        Raises:
            ArchitectureError: the module's weight is not a plain matrix.
        """
        weight, bias = read_weight(module), read_bias(module)
        left, right = self.left.to(weight.device), self.right.to(weight.device)
        add_to_weight(module, -left @ (right @ weight.double()))
        if bias is not None:
            bias -= (left @ (right @ (bias.double() - self.mean.to(bias.device)))).to(bias.dtype)
