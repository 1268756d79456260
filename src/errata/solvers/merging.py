"""Merge many deltas into one: pure functions on tensors, which know no model, file or method.

A delta, or task vector, is what an edit run changed: tau_i = W'_i - W. All deltas of a call have
one shape. Merge deltas, never weights: entries outside a shard's mask are exact zeros in its delta,
so they have no vote, and they count in no mean of a method that elects.

Every method is three steps, each of which may be left out:

=================  ========  =====  =========  ================================================
method             drop      elect  normalise  paper
=================  ========  =====  =========  ================================================
linear             -         -      yes        model soups, arXiv 2203.05482
task_arithmetic    -         -      no         arXiv 2212.04089; a negative weight forgets
magnitude          smallest  -      no         the trim of TIES, then a weighted sum
ties               smallest  yes    yes        TIES, arXiv 2306.01708
dare, dare_linear  random    -      no         DARE, arXiv 2311.03099
dare_ties          random    yes    yes        DARE, then the election of TIES
sign               -         yes    yes        the election alone (ablation, arXiv 2405.14768)
slerp              -         -      -          two deltas only: along the arc between them
=================  ========  =====  =========  ================================================

`density` is the share of *all* entries that stays, as in the papers. In a shard of which only a
share rho was trained, a density of rho or more drops nothing that was trained. Random dropping
(DARE) loses edits of such shards, since they store nothing twice.

Departures: an election that ends in exactly zero goes to the positive side (the authors of TIES ask
the majority of the tensor), so that an entry's sign depends on that entry of the deltas alone. In a
mean of agreeing entries a negative weight counts with its absolute value: it only turns the delta
round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from errata.config import check_choice, check_range
from errata.errors import ConfigError, suggest

MAJORITIES = ("total", "frequency")
Terms = Callable[[], Iterator[Tensor]]
"""Makes the terms w_i tau_i anew, one at a time to spare memory."""
NEARLY_PARALLEL = 0.9995
"""Above this |cosine| SLERP's arc is taken as a line, since SLERP divides by the sine."""


@dataclass(frozen=True)
class MergeRule:
    """The steps of one merging method.

    Attributes:
        drop: which entries of each delta go: none, those of smallest magnitude, or random ones (the
            others are then divided by the density, which masks the expectation).
        elect: whether the deltas elect a sign per entry, and only those that have it count.
        normalize: whether the sum is divided by the weights that went into it, unless the caller
            says otherwise.
        arc: whether it is SLERP, which has none of these steps.
    """

    drop: Literal["none", "smallest", "random"] = "none"
    elect: bool = False
    normalize: bool = False
    arc: bool = False


MERGES: Mapping[str, MergeRule] = MappingProxyType(
    {
        "linear": MergeRule(normalize=True),
        "task_arithmetic": MergeRule(),
        "slerp": MergeRule(arc=True),
        "magnitude": MergeRule(drop="smallest"),
        "ties": MergeRule(drop="smallest", elect=True, normalize=True),
        "dare": MergeRule(drop="random"),
        "dare_linear": MergeRule(drop="random"),
        "dare_ties": MergeRule(drop="random", elect=True, normalize=True),
        "sign": MergeRule(elect=True, normalize=True),
    }
)


@torch.no_grad()
def merge(
    deltas: Sequence[Tensor],
    method: str = "ties",
    *,
    weights: Sequence[float] | None = None,
    density: float = 1.0,
    scale: float = 1.0,
    normalize: bool | None = None,
    majority: str = "total",
    t: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Merge task vectors into one; they themselves are not changed.

    Args:
        deltas: task vectors of one shape, such as (d_out, d_in), on one device.
        method: a name in `MERGES`.
        weights: one factor per delta; None gives each 1. Negative ones forget.
        density: share of a delta's entries that stay, in (0, 1]; for the methods that drop.
        scale: lambda, a factor on the result.
        normalize: divide by the weights that went into an entry; None does what the method's paper
            does.
        majority: an election sums magnitudes (`total`) or counts deltas (`frequency`, as in PEFT).
        t: where on the arc SLERP stops, from the first delta (0) to the second (1); None derives it
            from the weights.
        seed: decides which entries DARE drops, the same on every device.

    Returns:
        The merged delta in the shape and dtype of the first; computed in fp32 or better.

    Raises:
        ConfigError: an unknown method; no deltas, differing shapes or devices, entries that are not
            finite; a wrong number of weights, weights that sum to 0 where they divide; a setting
            out of range.
    """
    if method not in MERGES:
        raise ConfigError(f"there is no way of merging named {method!r}.{suggest(method, MERGES)}")
    rule = MERGES[method]
    _check_deltas(deltas)
    factors = _checked_weights(weights, len(deltas))
    if not 0 < density <= 1:
        raise ConfigError(f"density is {density}; it must be above 0 and at most 1.")
    if not math.isfinite(scale):
        raise ConfigError(f"scale is {scale}; it must be a finite number.")
    check_choice("majority", majority, MAJORITIES)
    if rule.arc:
        merged = _slerp(deltas, factors, t)
    else:
        rng = torch.Generator().manual_seed(seed)
        masks = [_mask(delta, rule, density, rng) for delta in deltas]
        if rule.drop == "random":
            scale /= density
        mean = rule.normalize if normalize is None else normalize

        def terms() -> Iterator[Tensor]:
            return map(_weighted, deltas, masks, factors)

        merged = torch.zeros_like(_upcast(deltas[0]))
        if rule.elect:
            _add_elected(merged, terms, factors, majority == "frequency", mean)
        else:
            for term in terms():
                merged += term
            if mean:
                merged /= _divisor(factors)
    return merged.mul_(scale).to(deltas[0].dtype)


def keep_largest(delta: Tensor, density: float) -> Tensor | None:
    """Mark the round(density * n) entries of largest magnitude, at least one.

    Of equal ones the first stay.

    Returns:
        Booleans in the shape of `delta`, or None when only zeros would be dropped.
    """
    count = max(1, round(density * delta.numel()))
    if int(torch.count_nonzero(delta)) <= count:
        return None
    magnitudes = _upcast(delta).abs().flatten()
    smallest = torch.kthvalue(magnitudes, magnitudes.numel() - count + 1).values
    keep = magnitudes > smallest
    ties = torch.nonzero(magnitudes == smallest).flatten()
    keep[ties[: count - int(keep.sum())]] = True
    return keep.view(delta.shape)


def _mask(delta: Tensor, rule: MergeRule, density: float, rng: torch.Generator) -> Tensor | None:
    if density == 1 or rule.drop == "none":
        return None
    if rule.drop == "smallest":
        return keep_largest(delta, density)
    # Drawn on the CPU, so that a seed means the same entries on every device.
    return (torch.rand(delta.shape, generator=rng) < density).to(delta.device)


def _upcast(delta: Tensor) -> Tensor:
    """Return the delta in fp32 or better, without a copy where it is so already."""
    return delta.to(torch.promote_types(delta.dtype, torch.float32))


def _weighted(delta: Tensor, mask: Tensor | None, weight: float) -> Tensor:
    """Return the kept entries of a delta times its weight, as a new tensor."""
    term = _upcast(delta) * weight
    return term if mask is None else term.mul_(mask)


def _add_elected(
    total: Tensor, terms: Terms, weights: Sequence[float], by_count: bool, normalize: bool
) -> None:
    """Fill zeros with the sum or mean of the terms w_i tau_i that have the elected sign.

    The elected sign is sign(sum_i w_i tau_i); zeros are in no mean.
    """
    for term in terms():
        total += term.sign_() if by_count else term
    positive, share = total >= 0, torch.zeros_like(total)
    total.zero_()
    for term, weight in zip(terms(), weights, strict=True):
        agrees = ((term > 0) == positive) & (term != 0)
        total += term.mul_(agrees)
        share += agrees.to(share.dtype).mul_(abs(weight))
    if normalize:
        total /= share.masked_fill_(share == 0, 1.0)


def _slerp(deltas: Sequence[Tensor], weights: Sequence[float], t: float | None) -> Tensor:
    """Return [sin((1 - t) w) a + sin(t w) b] / sin w, with w the angle between a and b."""
    if len(deltas) != 2:
        raise ConfigError(
            f"slerp merges two deltas, got {len(deltas)}; 'ties' and 'linear' take any number."
        )
    t = weights[1] / _divisor(weights) if t is None else t
    check_range("t", t, 0, 1)
    a, b = (_upcast(delta) for delta in deltas)
    norm_a, norm_b = (float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (a, b))
    cosine = 1.0
    if norm_a and norm_b:
        cosine = float(torch.dot((a / norm_a).flatten(), (b / norm_b).flatten()))
    if abs(cosine) > NEARLY_PARALLEL:
        return a * (1 - t) + b * t
    angle = math.acos(cosine)
    return (a * math.sin((1 - t) * angle) + b * math.sin(t * angle)).div_(math.sin(angle))


def _divisor(weights: Sequence[float]) -> float:
    total = math.fsum(weights)
    if abs(total) < 1e-8:
        raise ConfigError(
            f"the weights {list(weights)} sum to 0 and cannot be normalised; use normalize=False."
        )
    return total


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0] * count
    if len(weights) != count:
        raise ConfigError(f"got {len(weights)} weights for {count} deltas; there must be one each.")
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(f"the weights are {list(weights)}; they must be finite numbers.")
    return [float(weight) for weight in weights]


def _check_deltas(deltas: Sequence[Tensor]) -> None:
    if not len(deltas):
        raise ConfigError("there are no deltas to merge.")
    first = deltas[0]
    for number, delta in enumerate(deltas, start=1):
        if delta.shape != first.shape:
            raise ConfigError(
                f"delta {number} has shape {tuple(delta.shape)}, the first {tuple(first.shape)}."
            )
        if delta.device != first.device:
            raise ConfigError(f"delta {number} is on {delta.device}, the first on {first.device}.")
        if not delta.is_floating_point():
            raise ConfigError(f"delta {number} is {delta.dtype}; deltas are floating-point.")
        if not bool(torch.isfinite(delta).all()):
            reason = "entries that are not finite: its edits diverged"
            raise ConfigError(f"delta {number} has {reason}.")
