"""What a leaf adds to the head's input, solved for each token of an answer by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.config import FolioConfig


def solve_values(
    base: BaseHead, keys: Tensor, labels: Tensor, scale: float, config: FolioConfig
) -> Tensor:
    """Return what to add to inputs of the head so that it predicts labels.

    Each token's loss counts down to that of `confidence`, with the value and with `gain` times the
    value: between the two, a token that was far behind may overtake it. Both losses are convex, and
    some tokens lie far away, so the solver is L-BFGS. The best value seen is kept, as the line
    search may get lost where the loss is flat.

    Args:
        base: the base model's head.
        keys: (n, hidden), the head's inputs, in fp32.
        labels: (n,), the tokens to predict.
        scale: a usual deviation of the head's inputs, the unit that the solver steps in.
        config: `confidence`, `gain` and `steps`.

    Returns:
        (n, hidden), without `gain`.
    """
    values = torch.zeros_like(keys, requires_grad=True)
    target_loss = -math.log(config.confidence)
    labels = labels.to(keys.device).repeat(2)
    lowest, best = math.inf, values.detach().clone()

    def closure() -> Tensor:
        nonlocal lowest, best
        solver.zero_grad()
        moved = torch.cat([keys + scale * values, keys + config.gain * scale * values])
        losses = F.cross_entropy(base.logits(moved), labels, reduction="none")
        loss = F.relu(losses - target_loss).sum()
        if loss.item() < lowest:
            lowest, best = loss.item(), values.detach().clone()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver = torch.optim.LBFGS(
        [values],
        max_iter=config.steps,
        history_size=20,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )
    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return scale * best
