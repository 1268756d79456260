"""OGD, orthogonal gradient descent: a step leaves old answers as they are, to first order.

Farajtabar et al., arXiv 1910.07104: the gradients of the right answers' logits (OGD-GTL) on
`per_task` examples of each task are kept, and a step loses its part in their span.

What departs from the paper: what is projected is what the optimizer would do, not the gradient. Of
an answer of several tokens the mean of the right logits is taken. The directions are as long as all
that is trained, so on larger models this wants `trains=values` and few of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.config import PositiveInt
from errata.continual.config import LearningConfig
from errata.continual.forward import gradients_of
from errata.continual.plugin import Gradients, Plugin
from errata.solvers.projector import Projector


@dataclass(frozen=True)
class OgdSettings(LearningConfig):
    """Settings of OGD.

    Attributes:
        per_task: examples of each task whose gradients are kept.
    """

    per_task: PositiveInt = 20


class Ogd(Plugin):
    """Projects each step off the gradients of old answers."""

    config_class = OgdSettings
    kind = "gradient hook"
    paper = "arXiv 1910.07104"
    config: OgdSettings

    def __init__(self, config: OgdSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.projector = Projector(sum(each.numel() for each in self.parameters.values()))

    def step(self, change: Gradients, gradients: Gradients) -> Gradients:
        """Return the change without its part in old answers' gradients."""
        if not self.projector.preserved.shape[1]:
            return change
        flat = self.projector.project(torch.cat([each.flatten() for each in change]))
        parts = torch.split(flat, [each.numel() for each in change])
        return [part.view_as(each) for part, each in zip(parts, change, strict=True)]

    def end(self) -> None:
        """Keep the directions in which the task's answers change."""
        drawn = torch.randperm(len(self.tasks[-1]), generator=self.generator)
        items = [self.tasks[-1][each] for each in drawn[: self.config.per_task].tolist()]
        self.projector.fit(torch.stack([self._direction(item) for item in items]))

    def _direction(self, item: Any) -> Tensor:
        forward = self.learner.forward([item])
        right = forward.values
        if forward.labels is not None:
            right = right.gather(1, forward.labels[:, None])
        gradients = gradients_of(right.mean(), list(self.parameters.values()))
        flat = torch.cat([each.flatten() for each in gradients])
        length: Tensor = flat.norm()
        return flat / length.clamp(min=1e-30)

    def state(self) -> dict[str, Any]:
        """Return the directions."""
        return {"preserved": self.projector.preserved}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.projector.preserved = state["preserved"]
