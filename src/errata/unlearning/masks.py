"""`Masks`: which weights of a model's upper half are set to zero, learned by unlearning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.errors import UsageError
from errata.lm import LM
from errata.unlearning.subnetwork import Subnetwork
from errata.unlearning.trained import Trained

BEGUN = 0.2
"""The probability with which a weight is in a subnetwork before anything was learned."""
TEMPERATURE = 2 / 3
"""Of the relaxed draw."""


class Masks(Trained):
    """Which weights of the linear layers of a model's upper half are set to zero.

    Each weight has a score, by whose logistic function it is drawn at every step, relaxed, with a
    straight-through gradient; at the end those are zero that are likelier in than out.

    Args:
        lm: the model, into which they are put.
        seed: of the draws.
    """

    def __init__(self, lm: LM, seed: int) -> None:
        self._lm, self._seed, blocks = lm, seed, lm.architecture.n_layers
        upper = [lm.architecture.block(lm.model, each) for each in range(blocks // 2, blocks)]
        inside = {module for block in upper for module in block.modules()}
        self._modules = {
            f"{name}.weight": module
            for name, module in lm.model.named_modules()
            if module in inside and isinstance(module, (nn.Linear, Conv1D))
        }
        for parameter in lm.model.parameters():
            parameter.requires_grad_(False)
        self._masked = {name: _Masked(module.weight.data) for name, module in self._modules.items()}
        for name, module in self._modules.items():
            parametrize.register_parametrization(module, "weight", self._masked[name])
        self.parameters = {name: each.scores for name, each in self._masked.items()}

    def begin(self, step: int) -> None:
        """Draw anew."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        for each in self._masked.values():
            each.draw(generator)

    def penalty(self) -> Tensor:
        """Return the share of the weights that is to be expected in the subnetwork."""
        expected = torch.stack([each.sigmoid().sum() for each in self.parameters.values()])
        return expected.sum() / sum(each.numel() for each in self.parameters.values())

    @contextmanager
    def set_back(self) -> Iterator[None]:
        """Within a `with` block, let the model be as it was before it was trained."""
        for each in self._masked.values():
            each.off = True
        try:
            yield
        finally:
            for each in self._masked.values():
                each.off = False

    def scale(self, factor: float) -> None:
        """Raise `UsageError`: a weight is in or out."""
        raise UsageError("what masks learned is not scaled: a weight is zero or it is not.")

    @property
    def subnetwork(self) -> Subnetwork:
        """What is set to zero."""
        return Subnetwork({name: each.detach() > 0 for name, each in self.parameters.items()})

    def remove(self) -> None:
        """Take off what was learned; this is then unusable."""
        for module in self._modules.values():
            with self.set_back():
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight.requires_grad_(False)

    def finish(self) -> PreTrainedModel:
        """Return the model, with these weights zero."""
        found = self.subnetwork
        self.remove()
        found.remove(self._lm)
        return self._lm.model


class _Masked(nn.Module):
    """A matrix less the weights that are drawn, (d_out, d_in)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        begun = torch.full(weight.shape, BEGUN, dtype=torch.float32, device=weight.device).logit()
        self.scores = nn.Parameter(begun)
        self.off = False
        self._noise: Tensor | None = None

    def draw(self, generator: torch.Generator) -> None:
        """Draw logistic noise for a step."""
        drawn = torch.rand(self.scores.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
        self._noise = drawn.logit().to(self.scores.device)

    def forward(self, weight: Tensor) -> Tensor:
        if self.off:
            return weight
        scores = self.scores if self._noise is None else self.scores + self._noise
        drawn = torch.sigmoid(scores / TEMPERATURE)
        removed = (scores > 0).to(drawn) + drawn - drawn.detach()
        return weight * (1 - removed).to(weight)
