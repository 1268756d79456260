"""SI, synaptic intelligence: weights count by how much they did for the loss on their way.

Zenke, Poole and Ganguli, arXiv 1703.04200. While a task is learned, w_j sums -g_j * dW_j over the
steps, g the gradient of the task's own loss and dW what the step changed. Afterwards W_j counts
Omega_j += w_j / (D_j^2 + `damping`), D_j its change over the task, and later losses get +
`strength` * sum_j Omega_j (W_j - W*_j)^2.

What departs from the paper: a negative w_j counts as nothing (there the penalty could push a weight
away, as in the published code, which cuts it off, too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from errata.config import NonNegativeFloat, Range
from errata.continual.config import LearningConfig
from errata.continual.plugin import Gradients, Plugin
from errata.solvers.importance import distance


@dataclass(frozen=True)
class SiSettings(LearningConfig):
    """Settings of SI.

    Attributes:
        strength: c.
        damping: xi; it keeps weights that hardly changed from counting without bound.
    """

    strength: NonNegativeFloat = 1.0
    damping: Annotated[float, Range(1e-12)] = 1e-3


class Si(Plugin):
    """Penalises changes by the path integral of earlier tasks."""

    config_class = SiSettings
    kind = "penalty"
    paper = "arXiv 1703.04200"
    config: SiSettings

    def __init__(self, config: SiSettings, learner: Any) -> None:
        super().__init__(config, learner)
        zeros = [torch.zeros_like(each) for each in self.parameters.values()]
        self.omega, self.then = zeros, [each.clone() for each in zeros]
        self.path: list[Tensor] = []

    def begin(self, items: Sequence[Any]) -> None:
        """Begin a path where the weights are."""
        super().begin(items)
        self.then = [each.detach().clone() for each in self.parameters.values()]
        self.path = [torch.zeros_like(each) for each in self.then]

    def penalty(self) -> Tensor | None:
        """Return the quadratic penalty."""
        if self.task == 0:
            return None
        now = self.parameters.values()
        return self.config.strength * distance(self.omega, now, self.then)

    def step(self, change: Gradients, gradients: Gradients) -> Gradients:
        """Add what the step does for the loss to the path."""
        for path, made, gradient in zip(self.path, change, gradients, strict=True):
            path -= gradient * made
        return change

    def end(self) -> None:
        """Turn the path into importance."""
        now = [each.detach() for each in self.parameters.values()]
        for omega, path, end, start in zip(self.omega, self.path, now, self.then, strict=True):
            omega += path.clamp(min=0) / ((end - start).square() + self.config.damping)

    def state(self) -> dict[str, Any]:
        """Return the importance; where the weights are, the next task sees."""
        return {"omega": self.omega}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.omega = list(state["omega"])
