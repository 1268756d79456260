"""`Learner`: what a plug-in may ask of the model that learns; `Forward`: what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Forward:
    """What a model makes of examples.

    Attributes:
        values: (n, d), its outputs; of a language model the logits where a token is predicted.
        losses: (count,), the loss of each example; of a language model the mean negative
            log-probability of its tokens, in nats.
        labels: (n,), which output is the right one; None where outputs are numbers.
        rows: (n,), the example that each output is of.
    """

    values: Tensor
    losses: Tensor
    labels: Tensor | None
    rows: Tensor

    @property
    def hits(self) -> Tensor:
        """(n,), 1 where the largest output is the right one, else 0."""
        labels = self.values.new_full((), -1) if self.labels is None else self.labels
        return (self.values.argmax(-1) == labels).float()


class Learner(Protocol):
    """A model that learns from examples of any kind.

    Attributes:
        parameters: what is trained of it, leaf tensors by name.
    """

    parameters: Mapping[str, Tensor]

    def forward(self, items: Sequence[Any]) -> Forward:
        """Return what the model makes of examples, with gradients."""

    def keys(self, items: Sequence[Any]) -> Mapping[str, Tensor]:
        """Return the inputs (n, d_in) of each matrix that is trained, by name."""

    def transposed(self, name: str) -> bool:
        """Return whether a matrix is kept as (d_in, d_out)."""


@contextmanager
def set_to(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within a `with` block, let parameters have other values; afterwards they are to the bit
    what they were.
    """
    now = {name: each.data for name, each in parameters.items()}
    for name, each in parameters.items():
        each.data = values[name]
    try:
        yield
    finally:
        for name, each in parameters.items():
            each.data = now[name]


def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of the values of parameters."""
    return {name: each.detach().clone() for name, each in parameters.items()}


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return a loss's gradients, zeros where it does not depend on a parameter."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(each) if gradient is None else gradient
        for each, gradient in zip(parameters, found, strict=True)
    ]


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two lists of tensors, in fp64."""
    parts = [(a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)]
    return torch.stack(parts).sum()
