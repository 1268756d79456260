"""MAS, memory aware synapses: weights that the outputs are sensitive to are held.

Aljundi et al., arXiv 1711.09601. After each task Omega_j += mean |d ||f(x)||^2 / d W_j| over its
examples, f the model's outputs; later losses get + `strength` * sum_j Omega_j (W_j - W*_j)^2. No
label is looked at.

What departs from the paper: f are the logits of an answer's tokens, less their mean over the
vocabulary (which changes no probability), and the mean over the tokens is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from errata.config import NonNegativeFloat, PositiveInt
from errata.continual.config import LearningConfig
from errata.continual.plugin import Plugin
from errata.solvers.importance import distance, importance


@dataclass(frozen=True)
class MasSettings(LearningConfig):
    """Settings of MAS.

    Attributes:
        strength: lambda.
        examples: the most examples of a task that Omega is taken over.
    """

    strength: NonNegativeFloat = 0.01
    examples: PositiveInt = 200


class Mas(Plugin):
    """Penalises changes by the outputs' sensitivity."""

    config_class = MasSettings
    kind = "penalty"
    paper = "arXiv 1711.09601"
    config: MasSettings

    def __init__(self, config: MasSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.omega = [torch.zeros_like(each) for each in self.parameters.values()]
        self.then: list[Tensor] = []

    def penalty(self) -> Tensor | None:
        """Return the quadratic penalty."""
        if not self.then:
            return None
        return self.config.strength * distance(self.omega, self.parameters.values(), self.then)

    def end(self) -> None:
        """Add the task's sensitivities, and keep the weights."""

        def length(item: Any) -> Tensor:
            forward = self.learner.forward([item])
            values = forward.values
            if forward.labels is not None:
                values = values - values.mean(-1, keepdim=True)
            return values.square().sum(-1).mean()

        items = self.tasks[-1][: self.config.examples]
        parameters = list(self.parameters.values())
        found = importance((partial(length, item) for item in items), parameters, torch.abs)
        self.omega = [old + new for old, new in zip(self.omega, found, strict=True)]
        self.then = [each.detach().clone() for each in parameters]

    def state(self) -> dict[str, Any]:
        """Return the importance and the weights."""
        return {"omega": self.omega, "then": self.then}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.omega, self.then = list(state["omega"]), list(state["then"])
