"""`improve`: the loop that edits a policy and keeps an edit only if the mean return rises.

Each round: play, partly at random; find the cells in which another action earned more; rehearse
those rules beside the model, which costs no forward pass; write those that helped as edits; play
on other seeds, and take the edits back unless the edited model's mean return there is higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from errata.agents.game import Cell, Game
from errata.agents.policies import Exploring, Rules
from errata.agents.record import AgentRecord
from errata.agents.rollout import Episode, Rollout, play_episodes
from errata.agents.scorer import ActionScorer, Speaker
from errata.agents.values import Proposal, reward_weighted, worst_cells
from errata.model import EditModel
from errata.progress import OnProgress

EXPLORE = ((0.3, 1), (0.1, 4), (0.05, 16))
"""Shares of steps that begin something at random, and how long it lasts; a third of the episodes
each.
"""
EXPLORE_FROM, REHEARSE_FROM, ACCEPT_FROM = 10_000, 100_000, 200_000
"""The first seeds of the episodes to learn from, to rehearse on, and to judge by."""
TRIED = 12
"""Rules that are rehearsed in a round, at most."""
LOOP = "own episodes"
"""The source of rules that the loop found."""


@dataclass(frozen=True)
class LoopSizes:
    """How many episodes each part of a round plays."""

    explore: int = 60
    rehearse: int = 16
    accept: int = 16


def explored(game: Game, speaker: Speaker, count: int, number: int, seed: int) -> list[Episode]:
    """Play episodes that are partly at random; `number` is the round's."""
    found: list[Episode] = []
    share = max(1, count // len(EXPLORE))
    for kind, (chance, hold) in enumerate(EXPLORE):
        first = EXPLORE_FROM + (number * len(EXPLORE) + kind) * share
        policy = Exploring(speaker, game, chance, seed + first, hold)
        found += play_episodes(game, policy, range(first, first + share)).episodes
    return found


def improve(
    model: EditModel,
    game: Game,
    record: AgentRecord,
    rounds: int,
    sizes: LoopSizes | None = None,
    save: Callable[[], None] = lambda: None,
    progress: OnProgress = lambda what, done, total: None,
) -> None:
    """Run rounds of the loop until the record has so many; a resumed one goes on where it stopped.

    Args:
        model: the agent's; what helps is edited into it.
        game: what it plays.
        record: gets every trial.
        rounds: in all.
        sizes: episodes of each part.
        save: called after each round, the model and the record as they are then.
        progress: called after each round.

    Raises:
        UsageError: the tokenizer cannot tell the actions apart.
    """
    sizes = sizes or LoopSizes()
    speaker = Speaker(game, ActionScorer(model, game.actions))
    judges = range(ACCEPT_FROM, ACCEPT_FROM + sizes.accept)
    best = play_episodes(game, speaker, judges).mean if record.rounds < rounds else 0.0
    while record.rounds < rounds:
        number = record.rounds
        progress("improving", number, rounds)
        episodes = explored(game, speaker, sizes.explore, number, record.seed)
        proposals = worst_cells(episodes, lambda cells: speaker.act(cells, cells))[:TRIED]
        first = REHEARSE_FROM + number * sizes.rehearse
        rules = rehearsed(game, speaker, proposals, range(first, first + sizes.rehearse))
        if rules:
            best = _tried(model, game, speaker, rules, judges, best, record)
        record.rounds += 1
        save()
    progress("improving", rounds, rounds)


def reweigh(
    model: EditModel,
    game: Game,
    record: AgentRecord,
    rounds: int,
    sizes: LoopSizes | None = None,
    save: Callable[[], None] = lambda: None,
    progress: OnProgress = lambda what, done, total: None,
) -> None:
    """Run rounds of reward-weighted regression: play partly at random, and write what earned more.

    Nothing is taken back: the next round may. Arguments are those of `improve`.
    """
    sizes = sizes or LoopSizes()
    speaker = Speaker(game, ActionScorer(model, game.actions))
    while record.rounds < rounds:
        number = record.rounds
        progress("reweighing", number, rounds)
        episodes = explored(game, speaker, sizes.explore, number, record.seed)
        wanted = reward_weighted(episodes)
        cells = list(wanted)
        said = dict(zip(cells, speaker.act(cells, cells), strict=True))
        edits = [
            game.edit(cell, action, LOOP, number)
            for cell, action in wanted.items()
            if said[cell] != action
        ]
        model.edit(edits, check=False)
        mean = sum(each.total for each in episodes) / len(episodes)
        record.trials.append({"round": number, "edits": len(edits), "mean": mean})
        record.rounds += 1
        save()
    progress("reweighing", rounds, rounds)


def rehearsed(
    game: Game, speaker: Speaker, proposals: Sequence[Proposal], seeds: Sequence[int]
) -> dict[Cell, int]:
    """Return the rules that raise the mean return one after the other, beside the model's policy.

    Rules that change nothing are left out.
    """
    rules: dict[Cell, int] = {}
    if not proposals:
        return rules
    best = play_episodes(game, speaker, seeds).mean
    for each in proposals:
        tried = {**rules, each.cell: each.action}
        mean = play_episodes(game, Rules(tried, speaker), seeds).mean
        if mean > best:
            rules, best = tried, mean
    return rules


def _tried(
    model: EditModel,
    game: Game,
    speaker: Speaker,
    rules: dict[Cell, int],
    judges: Sequence[int],
    best: float,
    record: AgentRecord,
) -> float:
    """Write rules as edits, keep them if the mean return rises, and return the best so far."""
    edits = [game.edit(cell, action, LOOP, record.rounds) for cell, action in rules.items()]
    report = model.edit(edits, check=False)
    played: Rollout = play_episodes(game, speaker, judges)
    kept = played.mean > best
    if not kept:
        model.undo([edit.id for edit in report.written])
    record.trials.append(
        {"round": record.rounds, "edits": len(report.written), "mean": played.mean, "best": best,
         "kept": kept}  # fmt: skip
    )
    return played.mean if kept else best

