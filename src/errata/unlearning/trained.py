"""`Trained`: what unlearning trains of a model, and how it comes off for a while."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


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
