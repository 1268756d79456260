"""O-LoRA: a LoRA for each task, all of them at work, in input directions that do not meet.

Wang et al., arXiv 2310.14152: while task t is learned, earlier LoRAs stay as they are and count,
and the loss gets + `strength` * sum_{i<t} ||A_i A_t^T||^2, so that the new one reads what the
earlier ones do not. When asked, all are added: no task need be known.

What departs from the paper: `strength` is for the mean over matrices, so that it does not depend on
how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.config import NonNegativeFloat
from errata.continual.architecture.lora import Lora, LoraSettings
from errata.continual.architecture.low_rank import beside, merged
from errata.continual.plugin import Plugin


@dataclass(frozen=True)
class OLoraSettings(LoraSettings):
    """Settings of O-LoRA.

    Attributes:
        strength: lambda_1.
    """

    strength: NonNegativeFloat = 0.5


class OLora(Lora):
    """Trains LoRAs in orthogonal directions, and adds them up."""

    config_class = OLoraSettings
    paper = "arXiv 2310.14152"
    separate = False
    config: OLoraSettings

    def loss(self, items: Sequence[Any]) -> Tensor:
        """Return the loss of the model with all LoRAs."""
        with beside(self.learner, self.pairs):
            return Plugin.loss(self, items)

    def penalty(self) -> Tensor | None:
        """Return how far the task's LoRA reads what the earlier ones read."""
        if len(self.pairs) == 1:
            return None
        now = self.pairs[-1]
        overlaps = [
            (pairs[name].down @ now[name].down.T).square().sum()
            for pairs in self.pairs[:-1]
            for name in now
        ]
        return self.config.strength * torch.stack(overlaps).sum() / len(now)

    @contextmanager
    def at(self, task: int | None) -> Iterator[None]:
        """Within a `with` block, have all LoRAs in the weights, once there are any."""
        with merged(self.learner, self.pairs):
            yield
