"""DER++, dark experience replay: earlier examples come back with the logits they once had.

Buzzega et al., arXiv 2004.07211: beside the task's own loss, + `alpha` * ||z - z'||^2 on one draw
from the memory, z the logits now and z' those kept with the example, and + `beta` * the loss on
another draw.

What departs from the paper: the logits are those at the end of the example's task, when it is
offered to the memory (there as they come along); the squared distance is the mean over tokens and
vocabulary, each token's logits less their mean; the second draw is of half a batch, as is the
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import NonNegativeFloat
from errata.continual.replay.er import Er, ErSettings


@dataclass(frozen=True)
class DerppSettings(ErSettings):
    """Settings of DER++.

    Attributes:
        alpha: weight of the logits.
        beta: weight of the loss on the memory.
    """

    alpha: NonNegativeFloat = 0.5
    beta: NonNegativeFloat = 1.0


class Derpp(Er):
    """Matches the logits that examples of the memory had, and learns them again."""

    config_class = DerppSettings
    paper = "arXiv 2004.07211"
    config: DerppSettings

    def __init__(self, config: DerppSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.logits: list[Tensor] = []
        """Of each example in the memory, (tokens, vocabulary), centred."""

    def sample(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the examples, and draws of the memory by their places."""
        half = (len(items) + 1) // 2
        self._drawn = [self.memory.draw(half, self.generator) for _ in range(2)]
        return items

    def loss(self, items: Sequence[Any]) -> Tensor:
        """Return the loss of the examples and of both draws."""
        loss = self.learner.forward(items).losses.mean()
        dark, again = self._drawn
        if not dark:
            return loss
        now = centred(self.learner.forward([self.remembered(place) for place in dark]).values)
        then = torch.cat([self.logits[place] for place in dark]).to(now)
        replayed = self.learner.forward([self.remembered(place) for place in again]).losses.mean()
        return loss + self.config.alpha * F.mse_loss(now, then) + self.config.beta * replayed

    @torch.no_grad()
    def end(self) -> None:
        """Offer the task's examples to the memory, with their logits."""
        for number, item in enumerate(self.tasks[-1]):
            place = self.memory.offer((self.task, number), self.generator)
            if place is not None:
                logits = centred(self.learner.forward([item]).values)
                self.logits[place : place + 1] = [logits.half()]

    def state(self) -> dict[str, Any]:
        """Return where the examples are, and their logits."""
        return {**super().state(), "logits": self.logits}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        super().load_state(state)
        self.logits = list(state["logits"])


def centred(values: Tensor) -> Tensor:
    """Return logits (n, d) less their mean, which changes no probability."""
    return values - values.mean(-1, keepdim=True) if values.shape[-1] > 1 else values
