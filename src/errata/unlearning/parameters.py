"""The weights of a model that unlearning trains: its own, or low-rank matrices beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.errors import UsageError
from errata.lm import LM
from errata.lm.weights import add_to_weight
from errata.unlearning.config import UnlearningConfig
from errata.unlearning.masks import Masks
from errata.unlearning.trained import Trained

PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's modules."""


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

    @torch.no_grad()
    def start_from(self, parts: Mapping[str, Tensor]) -> None:
        """Let training start at matrices of others, and the model be what it is.

        The product of a matrix's low-rank ones becomes the nearest of their rank to what is given
        for it, and is taken away from the matrix itself.

        Args:
            parts: (d_out, d_in), by the module's name in the model; other matrices stay.
        """
        modules = dict(self._model.named_modules())
        for name, part in parts.items():
            layer = modules[f"{PREFIX}{name}"]
            first, second = (getattr(layer, f"lora_{each}")["default"].weight for each in "AB")
            rank = first.shape[0]
            left, size, right = torch.linalg.svd(part.float(), full_matrices=False)
            root = size[:rank].sqrt()
            found = right[:rank] * root[:, None], left[:, :rank] * root / layer.scaling["default"]
            for each, value in zip((first, second), found, strict=True):
                each.zero_()
                each[: value.shape[0], : value.shape[1]] = value
            base = layer.get_base_layer()
            add_to_weight(base, -layer.scaling["default"] * (second @ first))

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
