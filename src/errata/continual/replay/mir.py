"""MIR, maximally interfered retrieval: those are replayed that the step would hurt most.

Aljundi et al., arXiv 1908.04742: of `candidates` examples drawn from the memory, those come back
whose loss would rise most by a step on the new examples alone.

What departs from the paper: the virtual step is as long as one of Adam's (`lr` for each weight on
average), whatever the optimizer and the size of the gradient. The memory is ER's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from errata.config import PositiveInt
from errata.continual.forward import dot, gradients_of, set_to
from errata.continual.replay.er import Er, ErSettings


@dataclass(frozen=True)
class MirSettings(ErSettings):
    """Settings of MIR.

    Attributes:
        candidates: examples that are drawn, of which a batch's size is replayed.
    """

    candidates: PositiveInt = 24


class Mir(Er):
    """Replays the examples that a step would interfere with most."""

    config_class = MirSettings
    paper = "arXiv 1908.04742"
    config: MirSettings

    def sample(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the examples, and those of the memory that they would hurt most."""
        drawn = self.memory.draw(self.config.candidates, self.generator)
        candidates = [self.remembered(place) for place in drawn]
        if len(candidates) <= len(items):
            return [*items, *candidates]
        rises = self.rises(items, candidates)
        worst = rises.argsort(descending=True, stable=True)[: len(items)].tolist()
        return [*items, *(candidates[number] for number in worst)]

    def rises(self, items: Sequence[Any], candidates: Sequence[Any]) -> torch.Tensor:
        """Return how much each candidate's loss would rise, (n,)."""
        parameters = self.parameters
        values = list(parameters.values())
        gradients = gradients_of(self.learner.forward(items).losses.mean(), values)
        length = float(dot(gradients, gradients).sqrt().clamp(min=1e-30))
        step = self.config.lr * math.sqrt(sum(each.numel() for each in values)) / length
        moved = {
            name: each.detach() - step * gradient
            for (name, each), gradient in zip(parameters.items(), gradients, strict=True)
        }
        with torch.no_grad():
            before = self.learner.forward(candidates).losses
            with set_to(parameters, moved):
                return self.learner.forward(candidates).losses - before
