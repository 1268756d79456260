"""GEM, gradient episodic memory: a step may raise no earlier task's loss.

Lopez-Paz and Ranzato, arXiv 1706.08840: with g_k the gradient on task k's memory, the step's
direction u becomes the nearest one with <u, g_k> >= 0 for all earlier k, by the dual quadratic
program: u + G^T v, v >= 0 minimising 1/2 v^T G G^T v + (G u)^T v (`solvers/quadratic.py`).

What departs from the paper: u is what the optimizer would do, not the gradient (the same with plain
SGD; with Adam, what is projected is what is done); a task's memory is a draw of its examples, and
g_k is taken over `batch` of them at a time; the margin of the published code is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from errata.config import PositiveInt
from errata.continual.config import LearningConfig
from errata.continual.forward import dot, gradients_of
from errata.continual.plugin import Gradients, Plugin
from errata.solvers.quadratic import nonnegative_minimum


@dataclass(frozen=True)
class GemSettings(LearningConfig):
    """Settings of GEM.

    Attributes:
        per_task: examples that are kept of each task.
    """

    per_task: PositiveInt = 50


class Gem(Plugin):
    """Projects each step so that no earlier task's loss rises."""

    config_class = GemSettings
    kind = "gradient hook"
    paper = "arXiv 1706.08840"
    config: GemSettings

    def __init__(self, config: GemSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.memory: list[list[int]] = []
        self.earlier: list[Gradients] = []
        """Gradients on the tasks' memories, where this step begins."""

    def gradient(self, gradients: Gradients, again: Callable[[], Gradients]) -> Gradients:
        """Take the gradients on the memories."""
        parameters = list(self.parameters.values())
        self.earlier = []
        for task, numbers in enumerate(self.memory):
            drawn = torch.randperm(len(numbers), generator=self.generator)[: self.config.batch]
            items = [self.tasks[task][numbers[each]] for each in drawn.tolist()]
            loss = self.learner.forward(items).losses.mean()
            self.earlier.append(gradients_of(loss, parameters))
        return gradients

    def step(self, change: Gradients, gradients: Gradients) -> Gradients:
        """Return the nearest change that raises no earlier task's loss."""
        return nearest(change, self.earlier)

    def end(self) -> None:
        """Draw what is kept of the task."""
        order = torch.randperm(len(self.tasks[-1]), generator=self.generator)
        self.memory.append(order[: self.config.per_task].tolist())

    def state(self) -> dict[str, Any]:
        """Return the numbers of the examples that are kept."""
        return {"memory": self.memory}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.memory = [[int(number) for number in each] for each in state["memory"]]


def nearest(change: Gradients, earlier: list[Gradients]) -> Gradients:
    """Return the nearest change that has <change, g> <= 0 for each of the earlier gradients g."""
    rises = [dot(change, each) for each in earlier]
    if not any(float(rise) > 0 for rise in rises):
        return change
    gram = torch.stack([torch.stack([dot(one, other) for other in earlier]) for one in earlier])
    weights = nonnegative_minimum(gram, -torch.stack(rises)).tolist()
    changed = [each.clone() for each in change]
    for weight, of_task in zip(weights, earlier, strict=True):
        for each, gradient in zip(changed, of_task, strict=True):
            each -= weight * gradient
    return changed
