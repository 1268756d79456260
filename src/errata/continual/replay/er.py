"""ER, experience replay: each step also sees examples of earlier tasks, from a reservoir.

Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", arXiv 1902.10486: beside the
task's own examples, half of what a step learns from are drawn from the memory.

What departs from the paper: tasks are learned for several epochs, and an example is offered to the
memory once, when its task is over; so what is replayed is always of earlier tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.config import PositiveInt
from errata.continual.config import LearningConfig
from errata.continual.memory import Reservoir
from errata.continual.plugin import Plugin


@dataclass(frozen=True)
class ErSettings(LearningConfig):
    """Settings of ER.

    Attributes:
        memory: examples that are kept, of all tasks together.
    """

    memory: PositiveInt = 200


class Er(Plugin):
    """Mixes examples of a reservoir into each step."""

    config_class = ErSettings
    kind = "sampler"
    paper = "arXiv 1902.10486"
    config: ErSettings

    def __init__(self, config: ErSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.memory = Reservoir(config.memory)

    def sample(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the examples and as many of the memory."""
        drawn = self.memory.draw(len(items), self.generator)
        return [*items, *map(self.remembered, drawn)]

    def remembered(self, place: int) -> Any:
        """Return an example of the memory."""
        task, number = self.memory.places[place]
        return self.tasks[task][number]

    def end(self) -> None:
        """Offer the task's examples to the memory."""
        for number in range(len(self.tasks[-1])):
            self.memory.offer((self.task, number), self.generator)

    def state(self) -> dict[str, Any]:
        """Return where the examples of the memory are."""
        return {"memory": self.memory.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.memory.load_state(state["memory"])
