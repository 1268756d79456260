"""LwF, learning without forgetting: on the new examples the model also stays what it was.

Li and Hoiem, arXiv 1606.09282: the loss gets + `strength` * T^2 * KL(softmax(z_old / T) ||
softmax(z_new / T)) on the task's own examples, z_old the logits of the model before the task, T the
`temperature`. Nothing of earlier tasks is kept.

What departs from the paper: a language model has one head, so there are no old heads whose outputs
could be kept while the new one learns; the two terms pull at the same logits. It begins with the
second task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import NonNegativeFloat, Range
from errata.continual.config import LearningConfig
from errata.continual.forward import copied, set_to
from errata.continual.plugin import Plugin


@dataclass(frozen=True)
class LwfSettings(LearningConfig):
    """Settings of LwF.

    Attributes:
        strength: lambda.
        temperature: T.
    """

    strength: NonNegativeFloat = 1.0
    temperature: Annotated[float, Range(1e-3)] = 2.0


class Lwf(Plugin):
    """Distils the model before the task on the task's examples."""

    config_class = LwfSettings
    kind = "penalty"
    paper = "arXiv 1606.09282"
    config: LwfSettings

    def __init__(self, config: LwfSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.before: Mapping[str, Tensor] = {}

    def begin(self, items: Sequence[Any]) -> None:
        """Keep the model as it is."""
        super().begin(items)
        self.before = copied(self.parameters)

    def loss(self, items: Sequence[Any]) -> Tensor:
        """Return the loss, with how far the model is from before."""
        forward = self.learner.forward(items)
        if self.task == 0:
            return forward.losses.mean()
        with torch.no_grad(), set_to(self.parameters, self.before):
            old = self.learner.forward(items).values
        heat = self.config.temperature
        apart = F.kl_div(
            (forward.values / heat).log_softmax(-1), (old / heat).log_softmax(-1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        return forward.losses.mean() + self.config.strength * heat**2 * apart
