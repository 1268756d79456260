"""What a leaf adds to the head's input, solved for each token of an answer by itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.config import FolioConfig

COMPETING = 256
"""The likeliest tokens at each position that the solver works on."""
ROUNDS = 4
"""Times that tokens are added which the solver left out and which turned out to compete."""
TOLERANCE = 0.05
"""What the loss over all tokens may be above that over the competing ones, in nats."""


def solve_values(
    base: BaseHead, keys: Tensor, labels: Tensor, scale: float, config: FolioConfig
) -> Tensor:
    """Return what to add to inputs of the head so that it predicts labels.

    Each token's loss counts down to that of `confidence`, with the value and with `gain` times the
    value: between the two, a token that was far behind may overtake it. The tokens that compete
    are solved for, and the result is checked against all.

    Args:
        base: the base model's head.
        keys: (n, hidden), the head's inputs, in fp32.
        labels: (n,), the tokens to predict.
        scale: a usual deviation of the head's inputs, the unit that the solver steps in.
        config: `confidence`, `gain` and `steps`.

    Returns:
        (n, hidden), without `gain`.
    """
    labels = labels.to(keys.device)
    if not isinstance(base.head, nn.Linear) or COMPETING * len(labels) * 4 > base.vocabulary:
        return _solve(keys, labels, scale, config, _Competition(base, keys, None))
    with torch.no_grad():
        likeliest = base.logits(keys).topk(COMPETING).indices
    competing = torch.unique(torch.cat([labels, likeliest.flatten()]))
    values = keys
    for _ in range(ROUNDS):
        competition = _Competition(base, keys, competing)
        places = competition.places(labels)
        # a few small matrices: on a GPU each step would wait for several calls
        values = _solve(keys.cpu(), places.cpu(), scale, config, competition).to(keys.device)
        missing = _overlooked(base, keys, labels, values, config, competition)
        if missing is None:
            break
        competing = torch.unique(torch.cat([competing, missing]))
    return values


class _Competition:
    """Logits of the tokens that compete, and one that stands for all others where they are now.

    Args:
        base: the base model's head.
        keys: (n, hidden), the head's inputs.
        tokens: (m,), ascending; None: all tokens compete.
    """

    def __init__(self, base: BaseHead, keys: Tensor, tokens: Tensor | None) -> None:
        self.base, self.tokens = base, tokens
        if tokens is None:
            return
        rows = {name: tensor.detach()[tokens] for name, tensor in base.head.named_parameters()}
        self._rows = {name: tensor.float().cpu() for name, tensor in rows.items()}
        with torch.no_grad():
            others = base.logits(keys)
            others[:, tokens] = -torch.inf
            self._others = others.logsumexp(-1, keepdim=True).cpu()

    def places(self, labels: Tensor) -> Tensor:
        """Return the places of labels (n,) among the competing tokens."""
        return labels if self.tokens is None else torch.searchsorted(self.tokens, labels)

    def losses(self, moved: Tensor, places: Tensor) -> Tensor:
        """Return the cross-entropy of labels (2 n,) at the head's inputs `moved` (2 n, hidden)."""
        if self.tokens is None:
            return F.cross_entropy(self.base.logits(moved), places, reduction="none")
        logits = F.linear(moved, **self._rows) * self.base.logit_scale
        others = self._others.repeat(len(moved) // len(self._others), 1)
        return F.cross_entropy(torch.cat([logits, others], -1), places, reduction="none")


def _solve(
    keys: Tensor, labels: Tensor, scale: float, config: FolioConfig, competition: _Competition
) -> Tensor:
    """Solve by L-BFGS, since the losses are convex and some tokens lie far away.

    The best value seen is kept, as the line search may get lost where the loss is flat.
    """
    values = torch.zeros_like(keys, requires_grad=True)
    target_loss = -math.log(config.confidence)
    labels = labels.repeat(2)
    lowest, best = math.inf, values.detach().clone()

    def closure() -> Tensor:
        nonlocal lowest, best
        solver.zero_grad()
        moved = torch.cat([keys + scale * values, keys + config.gain * scale * values])
        loss = F.relu(competition.losses(moved, labels) - target_loss).sum()
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


@torch.no_grad()
def _overlooked(
    base: BaseHead,
    keys: Tensor,
    labels: Tensor,
    values: Tensor,
    config: FolioConfig,
    competition: _Competition,
) -> Tensor | None:
    """Return the likeliest tokens where the loss over all tokens is higher; None if nowhere."""
    moved = torch.cat([keys + values, keys + config.gain * values])
    logits = base.logits(moved)
    losses = F.cross_entropy(logits, labels.repeat(2), reduction="none")
    places = competition.places(labels).repeat(2).cpu()
    worse = losses > competition.losses(moved.cpu(), places).to(losses.device) + TOLERANCE
    return logits[worse].topk(COMPETING).indices.flatten() if bool(worse.any()) else None
