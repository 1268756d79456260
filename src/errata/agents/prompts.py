"""Route A: what stands in front of the question: instructions, demonstrations, own experience.

Nothing is written into the model; all of it is in the prompt, one for each cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.agents.game import Cell, Game
from errata.agents.rollout import Episode
from errata.agents.values import discounted

AMONG = 24
"""Prompts that calibrate scores, at most."""


def among(game: Game, prompt_of: Callable[[Cell], str]) -> list[str]:
    """Return prompts of cells from all over the game, to calibrate scores by."""
    cells = game.cells()
    return [prompt_of(cell) for cell in cells[:: 1 + len(cells) // AMONG]]


@dataclass(frozen=True)
class Instructed:
    """Asks with the goal and the list of actions in front of the question."""

    game: Game

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

    def nearest(self, cell: Cell) -> list[Cell]:
        """Return the cells of the nearest examples, the nearest last; of equals, the smaller."""

        def far(other: Cell) -> tuple[int, Cell]:
            return sum(abs(a - b) for a, b in zip(cell, other, strict=True)), other

        return sorted(self.examples, key=far)[: self.count][::-1]


class Experience:
    """What an agent's own episodes say of each cell: how well each action went there.

    Reflexion (Shinn et al., arXiv 2303.11366) has the model write what it learns from an episode;
    here the episode's returns are put into the words of an example, since small models cannot.
    """

    def __init__(self) -> None:
        self._sums: dict[Cell, dict[int, list[float]]] = defaultdict(dict)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Take in episodes."""
        for episode in episodes:
            for cell, action, worth in zip(
                episode.cells, episode.actions, discounted(episode), strict=True
            ):
                sums = self._sums[cell].setdefault(action, [0.0, 0.0])
                sums[0] += worth
                sums[1] += 1

    @property
    def best(self) -> dict[Cell, int]:
        """The action that went best in each cell in which two were tried."""
        return {
            cell: max(sorted(tried), key=lambda action: tried[action][0] / tried[action][1])
            for cell, tried in sorted(self._sums.items())
            if len(tried) > 1
        }

    def to_list(self) -> list[Any]:
        """Return it, ready for JSON."""
        return [
            [list(cell), [[action, *sums] for action, sums in sorted(tried.items())]]
            for cell, tried in sorted(self._sums.items())
        ]

    @classmethod
    def from_list(cls, data: Sequence[Any]) -> Experience:
        """Build it from what `to_list` returned."""
        made = cls()
        for cell, tried in data:
            made._sums[tuple(cell)] = {action: [worth, count] for action, worth, count in tried}
        return made
