"""Policies: what chooses actions, for many states at once."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from errata.agents.game import Cell, Game


class Policy(Protocol):
    """Chooses an action, by its place among the game's, for each of many states."""

    def act(self, cells: Sequence[Cell], observations: Sequence[Any]) -> list[int]:
        """Return an action for each state, which is given as a cell and as it was observed."""


class RandomPolicy:
    """Chooses each action with the same probability."""

    def __init__(self, game: Game, seed: int) -> None:
        self._actions, self._random = range(len(game.actions)), random.Random(seed)

    def act(self, cells: Sequence[Cell], observations: Sequence[Any]) -> list[int]:
        """Draw an action for each state."""
        return [self._random.choice(self._actions) for _ in cells]


class ScriptedPolicy:
    """Does what the game's script says of the state itself, not of its cell."""

    def __init__(self, game: Game) -> None:
        self._game = game

    def act(self, cells: Sequence[Cell], observations: Sequence[Any]) -> list[int]:
        """Ask the script."""
        return [self._game.scripted(observation) for observation in observations]


class Rules:
    """Does in each cell what a rule says; in cells without one, what another policy does."""

    def __init__(self, rules: Mapping[Cell, int], otherwise: Policy) -> None:
        self.rules, self.otherwise = rules, otherwise

    def act(self, cells: Sequence[Cell], observations: Sequence[Any]) -> list[int]:
        """Look the rules up."""
        rest = [place for place, cell in enumerate(cells) if cell not in self.rules]
        asked = self.otherwise.act(
            [cells[place] for place in rest], [observations[place] for place in rest]
        )
        others = dict(zip(rest, asked, strict=True))
        return [
            others[place] if place in others else self.rules[cell]
            for place, cell in enumerate(cells)
        ]


class Exploring:
    """Does what another policy does, but now and then something at random.

    What is drawn is repeated for `hold` steps: one push in another direction is soon undone. States
    are told apart by their places: when an episode ends, what it held passes to the next one.

    Args:
        policy: the other policy.
        game: the game.
        share: of the steps that begin something at random.
        seed: of what is drawn.
        hold: steps that it lasts.
    """

    def __init__(self, policy: Policy, game: Game, share: float, seed: int, hold: int = 1) -> None:
        self._policy, self._actions, self._share = policy, range(len(game.actions)), share
        self._random, self._hold = random.Random(seed), hold
        self._held: dict[int, tuple[int, int]] = {}

    def act(self, cells: Sequence[Cell], observations: Sequence[Any]) -> list[int]:
        """Ask the other policy, and draw."""
        actions = self._policy.act(cells, observations)
        for place in range(len(actions)):
            action, left = self._held.get(place, (0, 0))
            if not left and self._random.random() < self._share:
                action, left = self._random.choice(self._actions), self._hold
            if left:
                actions[place], self._held[place] = action, (action, left - 1)
        return actions
