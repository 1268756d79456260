"""GPM, gradient projection memory: matrices change only where earlier tasks' inputs are not.

Saha, Garg and Roy, arXiv 2103.09762. After each task the inputs of each linear layer are taken, and
the directions kept that, with those before, hold `energy` of their summed squares; later changes D
of its matrix become D - D U U^T, so that what is in the span is answered as before.

What departs from the paper: what is projected is what the optimizer would do, not the gradient; and
`energy` is the same for all tasks. Weights that are no matrix (with `trains=all`) learn in the
first task only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from errata.config import PositiveInt, Range
from errata.continual.config import LearningConfig
from errata.continual.plugin import Gradients, Plugin
from errata.solvers.projector import Projector


@dataclass(frozen=True)
class GpmSettings(LearningConfig):
    """Settings of GPM.

    Attributes:
        energy: the share of the inputs' summed squares that the kept directions hold.
        examples: the most examples of a task whose inputs are looked at.
    """

    energy: Annotated[float, Range(0, 1)] = 0.97
    examples: PositiveInt = 100


class Gpm(Plugin):
    """Projects each matrix's change off the inputs of earlier tasks."""

    config_class = GpmSettings
    kind = "gradient hook"
    paper = "arXiv 2103.09762"
    config: GpmSettings

    def __init__(self, config: GpmSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.projectors: dict[str, Projector] = {}

    def step(self, change: Gradients, gradients: Gradients) -> Gradients:
        """Return the changes without their part in the span of earlier inputs."""
        if not self.projectors:
            return change
        return [
            self._projected(name, made) for name, made in zip(self.parameters, change, strict=True)
        ]

    def _projected(self, name: str, change: torch.Tensor) -> torch.Tensor:
        if name not in self.projectors:
            return torch.zeros_like(change)
        if self.learner.transposed(name):
            return self.projectors[name].project(change.T).T
        return self.projectors[name].project(change)

    def end(self) -> None:
        """Keep the directions of the task's inputs."""
        keys = self.learner.keys(self.tasks[-1][: self.config.examples])
        for name, seen in keys.items():
            self.projectors.setdefault(name, Projector(seen.shape[1]))
            self.projectors[name].fit(seen.double(), self.config.energy)

    def state(self) -> dict[str, Any]:
        """Return the directions, by matrix."""
        return {"preserved": {name: each.preserved for name, each in self.projectors.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        for name, preserved in state["preserved"].items():
            self.projectors[name] = Projector(len(preserved))
            self.projectors[name].preserved = preserved
