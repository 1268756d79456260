"""What actions were worth in the cells of episodes, and which rules that speaks for."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from errata.agents.game import Cell
from errata.agents.rollout import Episode

DISCOUNT = 0.98
LEAST = 3
"""Times that an action was tried in a cell before its worth counts."""


def discounted(episode: Episode) -> list[float]:
    """Return what was earned from each step on, later rewards counting less."""
    found, total = [], 0.0
    for reward in reversed(episode.rewards):
        total = reward + DISCOUNT * total
        found.append(total)
    return found[::-1]


@dataclass(frozen=True)
class Proposal:
    """A rule that may be better than what is done now.

    Attributes:
        cell: where.
        action: what to do there.
        gain: how much more that earned than what is done now, times the steps in the cell.
    """

    cell: Cell
    action: int
    gain: float


def worst_cells(episodes: Sequence[Episode], now: Mapping[Cell, int]) -> list[Proposal]:
    """Return rules for the cells in which another action earned more, the most promising first.

    Args:
        episodes: with enough at random in them that several actions were tried.
        now: what the policy does in each cell.
    """
    earned: dict[Cell, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for episode in episodes:
        for cell, action, worth in zip(
            episode.cells, episode.actions, discounted(episode), strict=True
        ):
            earned[cell][action].append(worth)
    found = []
    for cell in sorted(earned):
        action_now = now[cell]
        tried = {action: fmean(w) for action, w in earned[cell].items() if len(w) >= LEAST}
        if action_now not in tried:
            continue
        best = max(sorted(tried), key=tried.__getitem__)
        if (better := tried[best] - tried[action_now]) > 0:
            steps = sum(len(worths) for worths in earned[cell].values())
            found.append(Proposal(cell, best, better * steps))
    return sorted(found, key=lambda each: (-each.gain, each.cell))


def reward_weighted(episodes: Sequence[Episode], temperature: float = 1.0) -> dict[Cell, int]:
    """Return in each cell the action with the largest weight, by reward-weighted regression.

    A step weighs exp(A / temperature), where A is how much more was earned from it on than on
    average in its cell, in the cell's standard deviations (Peters and Schaal 2007; advantages as
    in arXiv 1910.00177). Regression on a table has the weighted shares as its solution; a rule
    says the largest.
    """
    steps = [
        (cell, action, worth)
        for episode in episodes
        for cell, action, worth in zip(
            episode.cells, episode.actions, discounted(episode), strict=True
        )
    ]
    worths: dict[Cell, list[float]] = defaultdict(list)
    for cell, _, worth in steps:
        worths[cell].append(worth)
    means = {cell: fmean(found) for cell, found in worths.items()}
    spreads = {cell: pstdev(found) or 1.0 for cell, found in worths.items()}
    weights: dict[Cell, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for cell, action, worth in steps:
        advantage = (worth - means[cell]) / spreads[cell]
        weights[cell][action] += math.exp(advantage / temperature)
    return {cell: max(sorted(of), key=of.__getitem__) for cell, of in sorted(weights.items())}


def imitated(episodes: Sequence[Episode], share: float) -> dict[Cell, int]:
    """Return what was done most often in each cell in the best episodes, as many as the share says.

    It is the cross-entropy method's step (Rubinstein 1999): where rewards are rare, a few episodes
    that met one say more than means.
    """
    best = sorted(episodes, key=lambda each: (-each.total, each.seed))
    done: dict[Cell, Counter[int]] = defaultdict(Counter)
    for episode in best[: max(1, int(share * len(best)))]:
        for cell, action in zip(episode.cells, episode.actions, strict=True):
            done[cell][action] += 1
    return {cell: max(sorted(of), key=of.__getitem__) for cell, of in sorted(done.items())}
