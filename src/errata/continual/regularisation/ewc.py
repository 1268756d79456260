"""EWC, elastic weight consolidation: weights that earlier tasks are sensitive to are held.

Kirkpatrick et al., arXiv 1612.00796. After each task the diagonal F of the empirical Fisher
information and the weights W* are kept; later losses get + `strength` / 2 * sum_j F_j (W_j -
W*_j)^2 for each of them. With `decay` there is one F, decay * F + F_t, and the latest W* (online
EWC, Schwarz et al., arXiv 1805.06370).

What departs from the paper: the log-probability of an example is the mean over its tokens, so that
`strength` does not depend on how long answers are; and the labels are those of the data, not drawn
from the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from errata.config import Fraction, NonNegativeFloat, PositiveInt
from errata.continual.config import LearningConfig
from errata.continual.plugin import Plugin
from errata.solvers.importance import distance, importance


@dataclass(frozen=True)
class EwcSettings(LearningConfig):
    """Settings of EWC.

    Attributes:
        strength: lambda.
        decay: of what the tasks before had in the one F; None: an F for each task.
        examples: the most examples of a task that F is taken over.
    """

    strength: NonNegativeFloat = 1e6
    decay: Fraction | None = None
    examples: PositiveInt = 200


class Ewc(Plugin):
    """Penalises changes by the Fisher information of earlier tasks."""

    config_class = EwcSettings
    kind = "penalty"
    paper = "arXiv 1612.00796"
    config: EwcSettings

    def __init__(self, config: EwcSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.kept: list[tuple[list[Tensor], list[Tensor]]] = []
        """(F, W*) of each task; with `decay` of the latest alone."""

    def penalty(self) -> Tensor | None:
        """Return the sum of the quadratic penalties."""
        if not self.kept:
            return None
        now = list(self.parameters.values())
        terms = [distance(fisher, now, then) for fisher, then in self.kept]
        return self.config.strength / 2 * torch.stack(terms).sum()

    def end(self) -> None:
        """Keep the Fisher information and the weights."""

        def loss(item: Any) -> Tensor:
            return self.learner.forward([item]).losses.sum()

        parameters = list(self.parameters.values())
        items = self.tasks[-1][: self.config.examples]
        fisher = importance((partial(loss, item) for item in items), parameters)
        then = [each.detach().clone() for each in parameters]
        if self.config.decay is None:
            self.kept.append((fisher, then))
            return
        for before, _ in self.kept:
            fisher = [
                new + self.config.decay * old for new, old in zip(fisher, before, strict=True)
            ]
        self.kept = [(fisher, then)]

    def state(self) -> dict[str, Any]:
        """Return F and W* of each task."""
        return {"kept": [[list(fisher), list(then)] for fisher, then in self.kept]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.kept = [(fisher, then) for fisher, then in state["kept"]]
