"""`Trained`: the weights of a model that unlearning trains, and how they come off for a while."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.errors import UsageError
from errata.lm import LM
from errata.unlearning.config import UnlearningConfig
from errata.unlearning.subnetwork import Subnetwork

PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's modules."""
BEGUN = 0.2
"""The probability with which a weight is in a subnetwork before anything was learned."""
TEMPERATURE = 2 / 3
"""Of the relaxed draw."""


class Trained(ABC):
    """What is trained of a model. `parameters` are leaf tensors, by name."""

    parameters: Mapping[str, Tensor]

    def begin(self, step: int) -> None:  # noqa: B027 (most draw nothing)
        """Note that a step begins: what is drawn, is drawn for all of it."""

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss for how much is changed, before it is weighted."""
        return 0.0

    @abstractmethod
    def set_back(self) -> Any:
        """Within a `with` block, let the model be as it was before it was trained."""

    @abstractmethod
    def scale(self, factor: float) -> None:
        """Multiply what was learned, the difference from before, by a factor."""

    @abstractmethod
    def remove(self) -> None:
        """Take off what was learned; this is then unusable."""

    @abstractmethod
    def finish(self) -> PreTrainedModel:
        """Return the model with what was learned in its own weights; this is then unusable."""


class Weights(Trained):
    """Some of the model's own weights; those of before are kept beside them.

    Args:
        lm: the model.
        names: of the parameters, as in `named_parameters`.
    """

    def __init__(self, lm: LM, names: list[str]) -> None:
        self._model = lm.model
        for parameter in lm.model.parameters():
            parameter.requires_grad_(False)
        all_of = dict(lm.model.named_parameters())
        self.parameters = {name: all_of[name].requires_grad_(True) for name in names}
        self._before = {name: each.detach().clone() for name, each in self.parameters.items()}

    @contextmanager
    def set_back(self) -> Iterator[None]:
        """Within a `with` block, let the model be as it was before it was trained."""
        now = {name: each.data for name, each in self.parameters.items()}
        for name, each in self.parameters.items():
            each.data = self._before[name]
        try:
            yield
        finally:
            for name, each in self.parameters.items():
                each.data = now[name]

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply what was learned, the difference from before, by a factor."""
        for name, each in self.parameters.items():
            each.copy_(torch.lerp(self._before[name], each, factor))

    @torch.no_grad()
    def remove(self) -> None:
        """Take off what was learned; this is then unusable."""
        for name, each in self.parameters.items():
            each.copy_(self._before[name])
        self.finish()

    def finish(self) -> PreTrainedModel:
        """Return the model."""
        for each in self.parameters.values():
            each.requires_grad_(False)
            each.grad = None
        return self._model


class LowRank(Trained):
    """Low-rank matrices beside all linear layers but the head (LoRA, arXiv 2106.09685), by PEFT.

    Args:
        lm: the model, into which they are put.
        rank: of each; they count twice.
        seed: of their first values.

    Raises:
        UsageError: PEFT is not installed.
    """

    def __init__(self, lm: LM, rank: int, seed: int) -> None:
        try:
            import peft
        except ImportError as error:
            raise UsageError(
                "low-rank matrices need PEFT: pip install 'errata[peft]'; unlearning does without "
                "them with --set trains=values."
            ) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._model: Any = peft.get_peft_model(
                lm.model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            )
        self.parameters = {
            name: each for name, each in self._model.named_parameters() if each.requires_grad
        }

    @contextmanager
    def set_back(self) -> Iterator[None]:
        """Within a `with` block, let the model be as it was before it was trained."""
        with self._model.disable_adapter():
            yield

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply what was learned, the product of the matrices, by a factor."""
        for name, each in self.parameters.items():
            if "lora_B" in name:
                each.mul_(factor)

    def changes(self) -> dict[str, Tensor]:
        """Return what is added to each matrix, (d_out, d_in), by its module's name in the model."""
        return {
            name.removeprefix(PREFIX): each.get_delta_weight("default").T
            if each.fan_in_fan_out
            else each.get_delta_weight("default")
            for name, each in self._model.named_modules()
            if hasattr(each, "get_delta_weight")
        }

    def remove(self) -> None:
        """Take off what was learned; this is then unusable."""
        self._model.unload()

    def finish(self) -> PreTrainedModel:
        """Return the model with the matrices merged into its weights."""
        merged: PreTrainedModel = self._model.merge_and_unload()
        return merged


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


def trained_of(lm: LM, config: UnlearningConfig, layer: int) -> Trained:
    """Return what the settings say is trained.

    Args:
        lm: the model.
        config: the settings.
        layer: the last block of `values`.

    Raises:
        UsageError: a library is missing.
    """
    if config.trains == "low-rank":
        return LowRank(lm, config.rank, config.seed)
    if config.trains == "masks":
        return Masks(lm, config.seed)
    if config.trains == "all":
        return Weights(lm, [name for name, _ in lm.model.named_parameters()])
    first = max(0, layer - config.blocks + 1)
    names = [f"{lm.architecture.value_path(each)}.weight" for each in range(first, layer + 1)]
    return Weights(lm, names)
