"""Many deltas to one: pure functions on tensors. It knows no model, no file and no method.

A delta, or task vector, is what an edit run changed: tau_i = W'_i - W. All deltas of a call have
one shape. Merge deltas, never weights: entries outside a shard's mask are exact zeros in its delta,
so they have no vote, and they count in no mean of a method that elects.
Every method is three steps, each of which may be left out:

=================  ========  =====  =========  ==================================================
method             drop      elect  normalise  paper
=================  ========  =====  =========  ==================================================
linear             -         -      yes        model soups, arXiv 2203.05482
task_arithmetic    -         -      no         arXiv 2212.04089; a negative weight forgets
magnitude          smallest  -      no         the trim of TIES, then a weighted sum
ties               smallest  yes    yes        TIES, arXiv 2306.01708
dare, dare_linear  random    -      no         DARE, arXiv 2311.03099
dare_ties          random    yes    yes        DARE, then the election of TIES
sign               -         yes    yes        the election alone (an ablation of WISE, arXiv
2405.14768) slerp              two deltas only: along the arc between them
=================  ========  =====  =========  ==================================================

`density` is the part of *all* entries that stays, as in the papers. In a shard of which only a part
rho was trained, a density of rho or more drops nothing that was trained. Random dropping (DARE)
loses edits of such
shards: they hold nothing twice.

Departures: an election that ends in exactly zero goes to the positive side (the authors of TIES ask
the majority of the tensor), so that an entry's sign depends on that entry of the deltas alone. The
share of a negative weight in a mean of agreeing entries is its absolute value: it turns a delta
round and does no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from errata.config import check_choice, check_range
from errata.errors import ConfigError, suggest

MAJORITIES = ("total", "frequency")
NEARLY_PARALLEL = 0.9995
"""Above this |cosine| the arc is a line: SLERP divides by its sine."""


@dataclass(frozen=True)
class Rule:
    """What a method does to a list of deltas.

    Attributes:
        drop: which entries of each delta go: none, those of smallest magnitude, or random ones (the
            others are then divided by the density, so that the expectation stays).
        elect: whether the deltas elect a sign per entry, and only those that have it count.
        normalize: whether the sum is divided by the weights that went into it, if the caller does
            not say.
        arc: whether it is SLERP, which has none of the above.
    """

    drop: Literal["none", "smallest", "random"] = "none"
    elect: bool = False
    normalize: bool = False
    arc: bool = False


MERGES: Mapping[str, Rule] = MappingProxyType(
    {
        "linear": Rule(normalize=True),
        "task_arithmetic": Rule(),
        "slerp": Rule(arc=True),
        "magnitude": Rule(drop="smallest"),
        "ties": Rule(drop="smallest", elect=True, normalize=True),
        "dare": Rule(drop="random"),
        "dare_linear": Rule(drop="random"),
        "dare_ties": Rule(drop="random", elect=True, normalize=True),
        "sign": Rule(elect=True, normalize=True),
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
    generator: torch.Generator | None = None,
) -> Tensor:
    """Merge task vectors into one. The deltas are left as they are.

    Args:
        deltas: task vectors, all (out, in) or any other one shape, on one device.
        method: a name in `MERGES`.
        weights: one factor per delta; None gives each 1. Negative ones forget.
        density: part of all entries of a delta that stays, in (0, 1]; for the methods that drop.
        scale: lambda, a factor on the result.
        normalize: divide by the weights that went into an entry; None does what the method's paper
            does.
        majority: an election counts magnitudes (`total`) or heads (`frequency`, after PEFT).
        t: where on the arc SLERP stops, from the first delta (0) to the second (1); None asks the
            weights.
        seed: which entries DARE drops follows from it, on every device alike.
        generator: used, and moved on, in place of a new one with `seed`.

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
    factors = _read_weights(weights, len(deltas))
    if not 0 < density <= 1:
        raise ConfigError(f"density is {density}; it must be above 0 and at most 1.")
    if not math.isfinite(scale):
        raise ConfigError(f"scale is {scale}; it must be a finite number.")
    check_choice("majority", majority, MAJORITIES)
    if rule.arc:
        merged = _slerp(deltas, factors, t)
    else:
        if generator is None:
            generator = torch.Generator().manual_seed(seed)
        keeps = [_keep(delta, rule, density, generator) for delta in deltas]
        if rule.drop == "random":
            scale /= density
        mean = rule.normalize if normalize is None else normalize
        if rule.elect:
            merged = _elected(deltas, keeps, factors, majority == "frequency", mean)
        else:
            merged = _summed(deltas, keeps, factors, mean)
    return merged.mul_(scale).to(deltas[0].dtype)


@dataclass(frozen=True)
class Overlap:
    """How much independent random masks share (WISE, arXiv 2405.14768, theorem 2.1), as parts of
    all entries.

    Attributes:
        pair: entries that are in two given masks, rho^2.
        every: entries that are in all k masks, rho^k. WISE does best near .03.
        exactly: k + 1 numbers; the j-th is the part of entries that are in exactly j of the k
            masks.
        union: entries that are in at least one mask.
    """

    pair: float
    every: float
    exactly: tuple[float, ...]
    union: float

    def deviation(self, size: int) -> float:
        """Standard deviation of the number of entries that are in all masks, of `size` entries."""
        return math.sqrt(self.every * (1 - self.every) * size)


def expected_overlap(rho: float, k: int) -> Overlap:
    """What k masks share of which each takes every entry with probability rho, independently.

    Raises:
        ConfigError: rho is outside [0, 1], or k is below 1.
    """
    check_range("rho", rho, 0, 1)
    if k < 1:
        raise ConfigError(f"k is {k}; there must be at least one mask.")
    exactly = tuple(math.comb(k, j) * rho**j * (1 - rho) ** (k - j) for j in range(k + 1))
    return Overlap(pair=rho**2, every=rho**k, exactly=exactly, union=1 - (1 - rho) ** k)


def keep_largest(delta: Tensor, density: float) -> Tensor | None:
    """Mark the round(density * n) entries of largest magnitude, at least one; of equal ones the
    first stay.

    Returns:
        Booleans in the shape of `delta`, or None when nothing but zeros would go.
    """
    count = max(1, round(density * delta.numel()))
    if int(torch.count_nonzero(delta)) <= count:
        return None
    size = _wide(delta).abs().flatten()
    least = torch.kthvalue(size, size.numel() - count + 1).values
    keep = size > least
    equal = torch.nonzero(size == least).flatten()
    keep[equal[: count - int(keep.sum())]] = True
    return keep.view(delta.shape)


def _keep(delta: Tensor, rule: Rule, density: float, generator: torch.Generator) -> Tensor | None:
    if density == 1 or rule.drop == "none":
        return None
    if rule.drop == "smallest":
        return keep_largest(delta, density)
    # Drawn where the generator lives, so that a seed means the same entries on every device.
    drawn = torch.rand(delta.shape, generator=generator, device=generator.device)
    return (drawn < density).to(delta.device)


def _wide(delta: Tensor) -> Tensor:
    """The delta in fp32, or in fp64 if it is; the tensor itself when it is that already."""
    return delta.to(torch.promote_types(delta.dtype, torch.float32))


def _term(delta: Tensor, keep: Tensor | None, weight: float) -> Tensor:
    """A new tensor: what is kept of a delta, times its weight. Made one at a time, to spare memory."""
    term = _wide(delta) * weight
    return term if keep is None else term.mul_(keep)


def _summed(
    deltas: Sequence[Tensor],
    keeps: Sequence[Tensor | None],
    weights: Sequence[float],
    normalize: bool,
) -> Tensor:
    """Sum of w_i tau_i, divided by the sum of w_i when normalised."""
    total = torch.zeros_like(_wide(deltas[0]))
    for delta, keep, weight in zip(deltas, keeps, weights, strict=True):
        total += _term(delta, keep, weight)
    if normalize:
        total /= _divisor(weights)
    return total


def _elected(
    deltas: Sequence[Tensor],
    keeps: Sequence[Tensor | None],
    weights: Sequence[float],
    by_heads: bool,
    normalize: bool,
) -> Tensor:
    """Sum or mean of the w_i tau_i that have the sign gamma = sign(sum_i w_i tau_i); zeros are in
    no mean.
    """
    vote = torch.zeros_like(_wide(deltas[0]))
    for delta, keep, weight in zip(deltas, keeps, weights, strict=True):
        term = _term(delta, keep, weight)
        vote += term.sign_() if by_heads else term
    positive = vote >= 0
    total, share = vote.zero_(), torch.zeros_like(vote)
    for delta, keep, weight in zip(deltas, keeps, weights, strict=True):
        term = _term(delta, keep, weight)
        agrees = ((term > 0) == positive) & (term != 0)
        total += term.mul_(agrees)
        share += agrees.to(share.dtype).mul_(abs(weight))
    return total.div_(share.masked_fill_(share == 0, 1.0)) if normalize else total


def _slerp(deltas: Sequence[Tensor], weights: Sequence[float], t: float | None) -> Tensor:
    """[sin((1 - t) w) a + sin(t w) b] / sin w, with w the angle between a and b; a line if w is
    none.
    """
    if len(deltas) != 2:
        raise ConfigError(
            f"slerp merges two deltas, got {len(deltas)}; 'ties' and 'linear' take any number."
        )
    if t is None:
        t = weights[1] / _divisor(weights)
    check_range("t", t, 0, 1)
    a, b = (_wide(delta) for delta in deltas)
    norm_a, norm_b = (float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (a, b))
    cosine = (
        float(torch.dot((a / norm_a).flatten(), (b / norm_b).flatten()))
        if norm_a and norm_b
        else 1.0
    )
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


def _read_weights(weights: Sequence[float] | None, count: int) -> list[float]:
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
            raise ConfigError(
                f"delta {number} has entries that are not finite: its edits diverged."
            )
