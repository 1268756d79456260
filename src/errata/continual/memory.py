"""`Reservoir`: a memory of examples in which every one seen has the same chance to be."""

from __future__ import annotations

from typing import Any

import torch

Place = tuple[int, int]
"""Task and number of an example."""


class Reservoir:
    """A memory of bounded size (Vitter, "Random Sampling with a Reservoir", 1985).

    Args:
        capacity: the most examples that it holds.

    Attributes:
        places: of the examples in it.
        seen: how many were offered.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.seen = capacity, 0
        self.places: list[Place] = []

    def offer(self, place: Place, generator: torch.Generator) -> int | None:
        """Take an example in, with the right chance; return where it lies, None if it does not."""
        self.seen += 1
        if len(self.places) < self.capacity:
            self.places.append(place)
            return len(self.places) - 1
        drawn = int(torch.randint(self.seen, (), generator=generator))
        if drawn >= self.capacity:
            return None
        self.places[drawn] = place
        return drawn

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """Return where so many of its examples lie, none twice; all of them if there are fewer."""
        return torch.randperm(len(self.places), generator=generator)[:count].tolist()

    def state(self) -> dict[str, Any]:
        """Return what `load_state` goes on from."""
        return {"seen": self.seen, "places": [list(each) for each in self.places]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.seen = int(state["seen"])
        self.places = [(int(task), int(number)) for task, number in state["places"]]
