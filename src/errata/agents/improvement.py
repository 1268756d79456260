"""`improve`: the loop that edits a policy and keeps an edit only if the mean return rises.

Each round: play, partly at random; find the cells in which another action earned more; rehearse
those rules beside the model, which costs no forward pass; write those that helped as edits; play
on other seeds, and take the edits back unless the edited model's mean return there is higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from errata.agents.game import Cell, Game
from errata.agents.policies import Exploring, Policy, Rules
from errata.agents.record import AgentRecord
from errata.agents.rollout import Episode, Rollout, play_episodes
from errata.agents.scorer import ActionScorer, Speaker
from errata.agents.values import Proposal, imitated, reward_weighted, worst_cells
from errata.model import EditModel
from errata.progress import OnProgress

NEAR, FAR = ((0.3, 1), (0.1, 4), (0.05, 16)), ((1.0, 1), (1.0, 16))
"""Shares of steps that begin something at random, and how long it lasts; as many steps each. Near
its own policy is seen what single actions are worth; far from it, rewards that are rare are met.
"""
SIDE_BY_SIDE = 16
"""Episodes that are played side by side to learn from."""
EXPLORE_FROM, REHEARSE_FROM, ACCEPT_FROM = 1_000_000, 100_000, 200_000
"""The first seeds of the episodes to learn from, to rehearse on, and to judge by."""
TRIED = 12
"""Rules that are rehearsed in a round, at most."""
BEST = (0.01, 0.03)
"""Shares of the episodes that are imitated as the best."""
LOOP = "own episodes"
"""The source of rules that the loop found."""


@dataclass(frozen=True)
class LoopSizes:
    """How much each part of a round plays.

    Attributes:
        explore: steps to learn from, at least, of each kind.
        rehearse: episodes to rehearse rules on.
        accept: episodes to judge edits by.
    """

    explore: int = 4_000
    rehearse: int = 16
    accept: int = 16


@dataclass(frozen=True)
class Ground:
    """Where an agent plays to learn: its game, and the record that counts the steps."""

    game: Game
    record: AgentRecord

    def play(self, policy: Policy, seeds: Sequence[int]) -> Rollout:
        """Play one episode for each seed."""
        rollout = play_episodes(self.game, policy, seeds)
        self.record.steps += rollout.steps
        return rollout

    def explore(
        self, policy: Policy, steps: int, kinds: Sequence[tuple[float, int]]
    ) -> list[Episode]:
        """Play episodes that are partly at random, so many steps of each kind; other ones in each
        round.
        """
        found: list[Episode] = []
        kinds_before = self.record.rounds * len(NEAR + FAR) + (len(NEAR) if kinds == FAR else 0)
        for kind, (chance, hold) in enumerate(kinds, kinds_before):
            first = EXPLORE_FROM + kind * steps  # no more episodes than steps
            exploring = Exploring(policy, self.game, chance, self.record.seed + first, hold)
            made = 0
            while made < steps:
                rollout = self.play(exploring, range(first, first + SIDE_BY_SIDE))
                found += rollout.episodes
                made, first = made + rollout.steps, first + SIDE_BY_SIDE
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
    ground, speaker = Ground(game, record), Speaker(game, ActionScorer(model, game.actions))
    judges = range(ACCEPT_FROM, ACCEPT_FROM + sizes.accept)
    if record.rounds >= rounds:
        return
    best = ground.play(speaker, judges).mean
    while record.rounds < rounds:
        number = record.rounds
        progress("improving", number, rounds)
        near = ground.explore(speaker, sizes.explore, NEAR)
        episodes = near + ground.explore(speaker, sizes.explore, FAR)
        cells = sorted({cell for each in episodes for cell in each.cells})
        said = dict(zip(cells, speaker.act(cells, cells), strict=True))
        proposals = worst_cells(near, said)[:TRIED]
        together = [
            {each.cell: each.action for each in found}
            for found in (proposals, proposals[: TRIED // 4], worst_cells(episodes, said)[:TRIED])
        ]
        learned = [reward_weighted(episodes), *(imitated(episodes, share) for share in BEST)]
        together += [differing(rules, said) for rules in learned]
        first = REHEARSE_FROM + number * sizes.rehearse
        seeds = range(first, first + sizes.rehearse)
        rules = rehearsed(ground, speaker, together, proposals, seeds)
        if rules:
            best = _tried(model, ground, speaker, rules, judges, best)
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
    ground, speaker = Ground(game, record), Speaker(game, ActionScorer(model, game.actions))
    while record.rounds < rounds:
        number = record.rounds
        progress("reweighing", number, rounds)
        episodes = ground.explore(speaker, sizes.explore, NEAR)
        wanted = reward_weighted(episodes)
        cells = list(wanted)
        said = dict(zip(cells, speaker.act(cells, cells), strict=True))
        rules = differing(wanted, said)
        edits = [game.edit(cell, action, LOOP, number) for cell, action in rules.items()]
        model.edit(edits, check=False)
        mean = sum(each.total for each in episodes) / len(episodes)
        record.trials.append({"round": number, "edits": len(edits), "mean": mean})
        record.rounds += 1
        save()


def differing(rules: dict[Cell, int], said: dict[Cell, int]) -> dict[Cell, int]:
    """Return the rules that are not what is said already."""
    return {cell: action for cell, action in rules.items() if said[cell] != action}


def rehearsed(
    ground: Ground,
    speaker: Policy,
    together: Sequence[dict[Cell, int]],
    proposals: Sequence[Proposal],
    seeds: Sequence[int],
) -> dict[Cell, int]:
    """Return rules that raise the mean return beside the model's policy; none, if none do.

    Args:
        ground: where it plays.
        speaker: the model's policy.
        together: rules that are tried all at once, since one step in another direction may be of
            no use where the next one goes back; the best of them count if they reach more than
            the proposals.
        proposals: rules that are added one by one, and stay where the mean rises.
        seeds: of the episodes.
    """
    rules: dict[Cell, int] = {}
    best = ground.play(speaker, seeds).mean
    for each in proposals:
        tried = {**rules, each.cell: each.action}
        mean = ground.play(Rules(tried, speaker), seeds).mean
        if mean > best:
            rules, best = tried, mean
    for tried in together:
        mean = ground.play(Rules(tried, speaker), seeds).mean
        if mean > best:
            rules, best = tried, mean
    return rules


def _tried(
    model: EditModel,
    ground: Ground,
    speaker: Speaker,
    rules: dict[Cell, int],
    judges: Sequence[int],
    best: float,
) -> float:
    """Write rules as edits, keep them if the mean return rises, and return the best so far."""
    game, record = ground.game, ground.record
    edits = [game.edit(cell, action, LOOP, record.rounds) for cell, action in rules.items()]
    report = model.edit(edits, check=False)
    played = ground.play(speaker, judges)
    kept = played.mean > best
    if not kept:
        model.undo([edit.id for edit in report.written])
    record.trials.append(
        {
            "round": record.rounds,
            "edits": len(report.written),
            "mean": played.mean,
            "best": best,
            "kept": kept,
        }
    )
    return played.mean if kept else best
