"""Rules: a policy as a table from cells to actions, and the edits that say it to a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from errata.agents.game import Cell, Game
from errata.agents.policies import Exploring, ScriptedPolicy
from errata.agents.rollout import play_episodes
from errata.edit import Edit

SHARE, HOLD = 0.1, 3
"""Of the steps that begin something at random, and how long it lasts, so that the rules know what
to do off the script's own way.
"""
LEARN_FROM = 1_000
"""The first seed of the episodes that rules are read from; figures are of seeds from 0."""
EPISODES = 40


class _Watched:
    """The script, and what it did in each cell."""

    def __init__(self, game: Game) -> None:
        self._script = ScriptedPolicy(game)
        self.done: dict[Cell, Counter[int]] = defaultdict(Counter)

    def act(self, cells: Sequence[Cell], observations: Sequence[Any]) -> list[int]:
        """Do what the script says, and note it."""
        actions = self._script.act(cells, observations)
        for cell, action in zip(cells, actions, strict=True):
            self.done[cell][action] += 1
        return actions


def scripted_rules(game: Game, episodes: int = EPISODES, seed: int = 0) -> dict[Cell, int]:
    """Return what the game's script does most often in each cell, the most visited cells first.

    Where the game can list its states, all are asked; else the script plays, half of the episodes
    with steps at random between its own.
    """
    script = _Watched(game)
    if states := game.states():
        script.act([game.cell(state) for state in states], states)
    else:
        seeds = range(LEARN_FROM, LEARN_FROM + episodes)
        play_episodes(game, script, seeds[::2])
        play_episodes(game, Exploring(script, game, SHARE, seed, HOLD), seeds[1::2])
    found = sorted(script.done.items(), key=lambda each: (-sum(each[1].values()), each[0]))
    return {cell: max(sorted(done), key=done.__getitem__) for cell, done in found}


def edits_of(game: Game, rules: dict[Cell, int], source: str) -> list[Edit]:
    """Return the rules as edits, in their order."""
    return [game.edit(cell, action, source) for cell, action in rules.items()]
