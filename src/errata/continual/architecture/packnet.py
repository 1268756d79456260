"""PackNet: each task keeps a few of the weights for good, and the others are free for the next.

Mallya and Lazebnik, arXiv 1711.05769. After a task, of the weights of each matrix that are still
free the share `keep` that counts most stays as it is, the others are set back, what is kept is
trained for `retrain` more epochs, and then never changes. A task is answered with its own weights
and those of the tasks before it: to the bit as right after it was learned.

What departs from the paper: a model that was trained before knows more than any task, so what is
set back becomes what it was in the base model, not zero, and what counts most is what changed most
from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.config import Fraction, NonNegativeInt
from errata.continual.architecture.separate import Separate, SeparateSettings
from errata.continual.forward import set_to
from errata.continual.plugin import Gradients

FREE = 255
"""The owner of a weight that no task has."""


@dataclass(frozen=True)
class PacknetSettings(SeparateSettings):
    """Settings of PackNet.

    Attributes:
        keep: the share of the free weights that a task keeps.
        retrain: epochs of training what is kept.
    """

    keep: Fraction = 0.25
    retrain: NonNegativeInt = 5


class Packnet(Separate):
    """Prunes after each task, and freezes what is left."""

    config_class = PacknetSettings
    paper = "arXiv 1711.05769"
    config: PacknetSettings

    def __init__(self, config: PacknetSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.base = self._copied()
        self.owner = {
            name: torch.full_like(each, FREE, dtype=torch.uint8)
            for name, each in self.parameters.items()
        }
        self._pruned = False

    def begin(self, items: Sequence[Any]) -> None:
        """Begin with all weights that are free."""
        super().begin(items)
        self._pruned = False

    def step(self, change: Gradients, gradients: Gradients) -> Gradients:
        """Return the change of what is free; once it is pruned, of what the task keeps."""
        mine = self.task if self._pruned else FREE
        return [
            made * (owner == mine) for owner, made in zip(self.owner.values(), change, strict=True)
        ]

    @torch.no_grad()
    def again(self) -> int:
        """Prune, and return the epochs of retraining."""
        if self._pruned:
            return 0
        self._pruned = True
        for name, each in self.parameters.items():
            owner, changed = self.owner[name], (each - self.base[name]).abs()
            places = (owner == FREE).flatten().nonzero()[:, 0]
            count = round(self.config.keep * len(places))
            best = changed.flatten()[places].topk(count).indices
            owner.view(-1)[places[best]] = self.task
            each.copy_(torch.where(owner == FREE, self.base[name], each))
        return self.config.retrain

    @contextmanager
    def at(self, task: int | None) -> Iterator[None]:
        """Within a `with` block, have the weights of a task and those before it."""
        latest = -1 if task is None else task
        values = {
            name: torch.where(
                owner.int() <= latest, self.parameters[name].detach(), self.base[name]
            )
            for name, owner in self.owner.items()
        }
        with set_to(self.parameters, values):
            yield

    def _copied(self) -> dict[str, Tensor]:
        return {name: each.detach().clone() for name, each in self.parameters.items()}

    def state(self) -> dict[str, Any]:
        """Return whose each weight is."""
        return {**super().state(), "owner": self.owner}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        super().load_state(state)
        self.owner = dict(state["owner"])
