"""`play_episodes`: one episode a seed, side by side, so that a policy is asked in batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from errata.agents.game import Cell, Game
from errata.agents.policies import Policy
from errata.progress import report

PLAYING = "playing"


@dataclass
class Episode:
    """One episode: what was seen, done and earned.

    Attributes:
        seed: of the environment.
        cells: the states, binned, one a step.
        actions: what was done in each.
        rewards: what each step earned.
        cut: whether it was cut after the most steps, rather than over.
    """

    seed: int
    cells: list[Cell] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    cut: bool = False

    @property
    def total(self) -> float:
        """The return: the sum of the rewards."""
        return sum(self.rewards)

    def to_go(self) -> list[float]:
        """Return what was earned from each step on."""
        found, total = [], 0.0
        for reward in reversed(self.rewards):
            total += reward
            found.append(total)
        return found[::-1]


@dataclass(frozen=True)
class Rollout:
    """Episodes, and the seconds that they took."""

    episodes: list[Episode]
    seconds: float

    @property
    def returns(self) -> list[float]:
        """The return of each episode."""
        return [each.total for each in self.episodes]

    @property
    def mean(self) -> float:
        """The mean return."""
        return sum(self.returns) / len(self.episodes)

    @property
    def steps(self) -> int:
        """All steps."""
        return sum(len(each.actions) for each in self.episodes)

    @property
    def visited(self) -> dict[Cell, int]:
        """Cell -> how many steps were made in it."""
        found: dict[Cell, int] = {}
        for each in self.episodes:
            for cell in each.cells:
                found[cell] = found.get(cell, 0) + 1
        return found


def play_episodes(
    game: Game,
    policy: Policy,
    seeds: Sequence[int],
    most_steps: int | None = None,
    see: Callable[[Any, Cell, int | None], None] | None = None,
) -> Rollout:
    """Play one episode for each seed, side by side.

    Args:
        game: what is played.
        policy: chooses the actions.
        seeds: of the environments.
        most_steps: after so many steps an episode is cut; None: the game's own.
        see: called before each step with (environment, cell, action), and at the end with no
            action; the environment draws itself.

    Raises:
        UsageError: what the game needs is not installed.
    """
    began = time.perf_counter()
    most = min(most_steps or game.most_steps, game.most_steps)
    with contextlib.ExitStack() as opened:
        games = [game.make(drawn=see is not None) for _ in seeds]
        for each in games:
            opened.callback(each.close)
        states = [each.reset(seed=seed)[0] for each, seed in zip(games, seeds, strict=True)]
        episodes = [Episode(seed) for seed in seeds]
        running = list(range(len(games)))
        while running:
            cells = [game.cell(states[place]) for place in running]
            actions = policy.act(cells, [states[place] for place in running])
            still = []
            for place, cell, action in zip(running, cells, actions, strict=True):
                if see is not None:
                    see(games[place], cell, action)
                states[place], reward, over, cut, _ = games[place].step(game.moves[action])
                episode = episodes[place]
                episode.cells.append(cell)
                episode.actions.append(action)
                episode.rewards.append(float(reward))
                cut = bool(cut) or len(episode.actions) >= most
                if not over and not cut:
                    still.append(place)
                elif see is not None:
                    see(games[place], game.cell(states[place]), None)
                episode.cut = cut and not over
            running = still
            steps = max(len(each.actions) for each in episodes)
            report(f"{PLAYING} {game.title}", steps, most)
    return Rollout(episodes, time.perf_counter() - began)
