"""`LowRankPair`: two thin matrices beside a linear layer (LoRA), and how they act or are merged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.continual.forward import set_to
from errata.continual.language import LanguageLearner
from errata.lm.hooks import add_to_output

SCALE = 2.0
"""How much the product counts, as in `lora_alpha = 2 r`."""


@dataclass(frozen=True)
class LowRankPair:
    """W + SCALE * up @ down.

    Attributes:
        down: A, (rank, d_in).
        up: B, (d_out, rank), zero at first.
    """

    down: Tensor
    up: Tensor


Pairs = Mapping[str, LowRankPair]
"""By the name of the matrix beside which they are."""


def drawn(
    learner: LanguageLearner, rank: int, generator: torch.Generator
) -> dict[str, LowRankPair]:
    """Return new pairs for all matrices, which change nothing yet."""
    pairs = {}
    for name, weight in learner.weights.items():
        d_out, d_in = weight.T.shape if learner.transposed(name) else weight.shape
        noise = torch.rand(rank, d_in, generator=generator).to(weight) * 2 - 1
        pairs[name] = LowRankPair(
            (noise / math.sqrt(d_in)).requires_grad_(),
            weight.new_zeros(d_out, rank).requires_grad_(),
        )
    return pairs


def named(pairs: Pairs) -> dict[str, Tensor]:
    """Return the matrices of pairs, by name."""
    return {
        f"{name}.{part}": getattr(pair, part)
        for name, pair in pairs.items()
        for part in ("down", "up")
    }


def from_named(tensors: Mapping[str, Tensor]) -> dict[str, LowRankPair]:
    """Return pairs from `named`."""
    names = [name.removesuffix(".down") for name in tensors if name.endswith(".down")]
    return {name: LowRankPair(tensors[f"{name}.down"], tensors[f"{name}.up"]) for name in names}


@contextmanager
def beside(learner: LanguageLearner, active: Sequence[Pairs]) -> Iterator[None]:
    """Within a `with` block, add what pairs say to the layers' outputs, with gradients."""
    with ExitStack() as hooks:
        for name, module in learner.modules.items():
            down = torch.cat([pairs[name].down for pairs in active])
            up = torch.cat([pairs[name].up for pairs in active], dim=1)

            def extra(x: Tensor, down: Tensor = down, up: Tensor = up) -> Tensor:
                return SCALE * (x @ down.T) @ up.T

            hooks.enter_context(add_to_output(module, extra))
        yield


@contextmanager
def merged(learner: LanguageLearner, active: Sequence[Pairs]) -> Iterator[None]:
    """Within a `with` block, have pairs in the weights; afterwards these are what they were."""
    values = {}
    for name, weight in learner.weights.items():
        values[name] = weight.detach()
        for pairs in active:
            change = SCALE * pairs[name].up.detach() @ pairs[name].down.detach()
            values[name] = values[name] + (change.T if learner.transposed(name) else change)
    with set_to(learner.weights, values):
        yield
