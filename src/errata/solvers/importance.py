"""How much each weight counts: the Fisher information, its relatives, and the penalty by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor


def importance(
    losses: Iterable[Callable[[], Tensor]],
    parameters: Sequence[Tensor],
    size: Callable[[Tensor], Tensor] = torch.square,
) -> list[Tensor]:
    """Return the mean size of the gradients of losses, for each parameter.

    With negative log-likelihoods and squares, that is the diagonal of the empirical Fisher
    information (Kirkpatrick et al., arXiv 1612.00796); it is zero where there is no loss.

    Args:
        losses: each returns a scalar.
        parameters: leaf tensors.
        size: of a gradient.
    """
    totals, count = [torch.zeros_like(each) for each in parameters], 0
    for loss in losses:
        gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
        count += 1
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total += size(gradient)
    return [total / max(1, count) for total in totals]


def distance(weights: Iterable[Tensor], now: Iterable[Tensor], then: Iterable[Tensor]) -> Tensor:
    """Return sum_j weight_j (now_j - then_j)^2 over all parameters."""
    terms = [
        (weight * (value - anchor).square()).sum()
        for weight, value, anchor in zip(weights, now, then, strict=True)
    ]
    return torch.stack(terms).sum()
