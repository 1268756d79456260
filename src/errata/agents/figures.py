"""What is measured of an agent: its return with an interval, and how its edits hold."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from errata.agents.game import Cell, Game
from errata.agents.scorer import ActionScorer

RESAMPLES = 2000


@dataclass(frozen=True)
class Played:
    """How an agent played.

    Attributes:
        episodes: played, one a seed.
        mean: the mean return.
        low, high: between these lie 95 % of the means of resampled episodes.
        edits: in its model.
        steps: made in all episodes.
        seconds: that they took, the model's reading included.
        prompts: that the model read for it.
    """

    episodes: int
    mean: float
    low: float
    high: float
    edits: int
    steps: int
    seconds: float
    prompts: int

    @property
    def steps_per_second(self) -> float:
        """Steps of the game in a second."""
        return self.steps / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return it, ready for JSON."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in dataclasses.asdict(self).items()
        }


def bootstrapped(returns: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the mean, and the interval of 95 % of the means of resampled returns."""
    drawn = random.Random(seed)
    means = sorted(fmean(drawn.choices(returns, k=len(returns))) for _ in range(RESAMPLES))
    edge = RESAMPLES // 40
    return fmean(returns), means[edge], means[-edge - 1]


def rules_said(
    game: Game, scorer: ActionScorer, rules: Mapping[Cell, int], wording: int | None = 0
) -> float:
    """Return the share of rules whose action is the likeliest of all.

    Args:
        game: the game.
        scorer: scores its actions.
        rules: cell -> action.
        wording: the question's, 0 that of the edits; None: the state is told in other words.
    """
    prompts = [
        game.reworded(cell) if wording is None else game.prompt(cell, wording) for cell in rules
    ]
    scores = scorer.scores(prompts)
    right = [
        max(range(len(each)), key=each.__getitem__) == action
        for each, action in zip(scores, rules.values(), strict=True)
    ]
    return fmean(right)
