"""Route A: what stands in front of the question: instructions, or demonstrations.

Nothing is written into the model; all of it is in the prompt, one for each cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from errata.agents.game import Cell, Game

AMONG = 24
"""Prompts that calibrate scores, at most."""


@dataclass(frozen=True)
class Instructed:
    """Asks with the goal and the list of actions in front of the question."""

    game: Game

    def shown(self, cell: Cell) -> int | None:
        """Return the action that a cell's prompt shows: none."""
        return None

    def __call__(self, cell: Cell) -> str:
        """Ask for the action in a cell."""
        return (
            f"{self.game.goal}\nThe possible actions are: {', '.join(self.game.actions)}.\n"
            f"{self.game.reworded(cell)} Answer with one word."
        )


@dataclass(frozen=True)
class Demonstrated:
    """Asks behind the examples that are nearest to a cell, the nearest last.

    Attributes:
        game: the game.
        examples: cell -> what was done there.
        count: examples that are shown.
    """

    game: Game
    examples: Mapping[Cell, int]
    count: int = 1

    def __call__(self, cell: Cell) -> str:
        """Ask for the action in a cell."""
        lines = [
            f"State: {self.game.state(near)}. Action: {self.game.actions[self.examples[near]]}"
            for near in self.nearest(cell)
        ]
        return "\n".join([self.game.goal, *lines, f"State: {self.game.state(cell)}. Action:"])

    def shown(self, cell: Cell) -> int | None:
        """Return the action of the nearest example; None where there is none."""
        nearest = self.nearest(cell)
        return self.examples[nearest[-1]] if nearest else None

    def nearest(self, cell: Cell) -> list[Cell]:
        """Return the cells of the nearest examples, the nearest last; of equals, the smaller."""

        def far(other: Cell) -> tuple[int, Cell]:
            return sum(abs(a - b) for a, b in zip(cell, other, strict=True)), other

        return sorted(self.examples, key=far)[: self.count][::-1]


def among(game: Game, asks: Instructed | Demonstrated) -> list[list[str]]:
    """Return prompts of cells from all over the game, to calibrate scores by, by what they show."""
    cells = game.cells()
    found: dict[int | None, list[str]] = defaultdict(list)
    for cell in cells[:: 1 + len(cells) // AMONG]:
        found[asks.shown(cell)].append(asks(cell))
    return list(found.values())
