"""`Agent`: a language model that plays a game, by one of the routes, and learns on the way.

The routes are the phases of knowledge editing, carried over to control: what is known stands in
front of the question (`PROMPTED`), or was written by a method of errata, as edits "in this cell,
this action".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.agents.experience import Experience
from errata.agents.figures import Played, bootstrapped
from errata.agents.game import Game
from errata.agents.improvement import FAR, NEAR, Ground, LoopSizes, improve, reweigh
from errata.agents.policies import Policy, RandomPolicy, ScriptedPolicy
from errata.agents.prompts import Demonstrated, Instructed, among
from errata.agents.record import AgentRecord
from errata.agents.rollout import play_episodes
from errata.agents.rules import edits_of, scripted_rules
from errata.agents.scorer import ActionScorer, Speaker
from errata.errors import UnknownNameError, UsageError, quoted, suggest
from errata.lm import LM
from errata.methods import variants
from errata.model import EditModel
from errata.progress import OnProgress
from errata.stream import edit_stream

INSTRUCTIONS, DEMONSTRATIONS, REFLECTION = "instructions", "demonstrations", "reflection"
PROMPTED = (INSTRUCTIONS, DEMONSTRATIONS, REFLECTION)
"""Routes on which all that is known stands in the prompt."""
RANDOM, SCRIPTED = "random", "scripted"
MODELLESS = (RANDOM, SCRIPTED)
"""Routes that no model is needed for; the others are held against them."""
SCRIPT, NOBODY = "script", "none"
TEACHERS = (SCRIPT, NOBODY)
"""Where the first rules come from: the game's script, or from nobody."""
ACCEPT, REWARD = "accept", "reward"
WAYS = (ACCEPT, REWARD)
"""What a round does: keep edits that raise the mean return, or reward-weighted regression."""
SAVE_EVERY = 20
"""Edits between two saves."""


def check_route(route: str) -> None:
    """Raise `UnknownNameError` unless a route is one: a way to prompt, or a method's name."""
    known = [*PROMPTED, *MODELLESS, *variants()]
    if route not in known:
        raise UnknownNameError(f"there is no route {quoted(route)}.{suggest(route, known)}")


def is_method(route: str) -> bool:
    """Return whether a route writes edits."""
    return route not in (*PROMPTED, *MODELLESS)


@dataclass
class Agent:
    """A player of a game.

    Attributes:
        game: what it plays.
        record: how it was taught so far, and by which route.
        model: the language model; None on the routes that need none.
        folder: where it is saved; None: nowhere.
    """

    game: Game
    record: AgentRecord
    model: EditModel | LM | None = None
    folder: Path | None = None

    def learn(
        self,
        rounds: int = 0,
        way: str = ACCEPT,
        sizes: LoopSizes | None = None,
        progress: OnProgress = lambda what, done, total: None,
    ) -> None:
        """Learn what the record does not say it has learned: the teacher's rules, then by itself.

        A run that was cut off goes on where it stopped.

        Args:
            rounds: of its own experience, in all.
            way: of `WAYS`, what a round does to edits.
            sizes: episodes of a round.
            progress: told what is being done.

        Raises:
            UsageError: the route does not learn from episodes, or the tokenizer cannot tell the
                actions apart.
            StorageError: the folder cannot be written.
        """
        route = self.record.route
        if rounds and not is_method(route) and route != REFLECTION:
            raise UsageError(f"the route {route!r} does not learn from episodes; leave --rounds.")
        if self.model is not None:
            ActionScorer(self.model, self.game.actions)  # before anything is written
        self.save_record()
        if isinstance(self.model, EditModel) and is_method(route):
            if self.record.teacher == SCRIPT:
                rules = scripted_rules(self.game, seed=self.record.seed)
                if not self.record.rounds:  # later ones may have replaced some of them
                    edits = edits_of(self.game, rules, self.record.teacher)
                    edit_stream(
                        self.model, edits, self.folder, SAVE_EVERY, check=False, progress=progress
                    )
            arguments = (self.model, self.game, self.record, rounds, sizes, self.save, progress)
            (improve if way == ACCEPT else reweigh)(*arguments)
        elif route == REFLECTION:
            self._reflect(rounds, sizes or LoopSizes(), progress)
        self.save()

    def _reflect(self, rounds: int, sizes: LoopSizes, progress: OnProgress) -> None:
        experience = Experience.from_list(self.record.experience)
        while self.record.rounds < rounds:
            progress("reflecting", self.record.rounds, rounds)
            ground = Ground(self.game, self.record)
            experience.add(ground.explore(self.policy(), sizes.explore, NEAR + FAR))
            self.record.experience = experience.to_list()
            self.record.rounds += 1
            self.save()

    def save(self) -> None:
        """Save the model's edits and the record, where there is a folder.

        Raises:
            StorageError: it cannot be written.
        """
        if self.folder is None:
            return
        if isinstance(self.model, EditModel) and is_method(self.record.route):
            self.model.save_pretrained(self.folder)
        self.record.save(self.folder)

    def policy(self) -> Policy:
        """Return what chooses its actions."""
        route, game = self.record.route, self.game
        if route == RANDOM:
            return RandomPolicy(game, self.record.seed)
        if route == SCRIPTED:
            return ScriptedPolicy(game)
        if self.model is None:
            raise UsageError(f"the route {route!r} needs a language model: give --model.")
        scorer = ActionScorer(self.model, game.actions)
        if is_method(route):
            return Speaker(game, scorer)
        asks: Instructed | Demonstrated = Instructed(game)
        if route == DEMONSTRATIONS:
            asks = Demonstrated(game, scripted_rules(game))
        elif route == REFLECTION:
            asks = Demonstrated(game, Experience.from_list(self.record.experience).best)
        return Speaker(game, scorer, asks, among(game, asks))

    def play(
        self, seeds: Sequence[int], most_steps: int | None = None, policy: Policy | None = None
    ) -> Played:
        """Play one episode for each seed, and note in the record how it went.

        Raises:
            UsageError: the route needs a model, or the game something that is not installed.
        """
        policy = policy or self.policy()
        rollout = play_episodes(self.game, policy, seeds, most_steps)
        edits = len(self.model.edits) if isinstance(self.model, EditModel) else 0
        mean, low, high = bootstrapped(rollout.returns)
        asked = policy.scorer.asked if isinstance(policy, Speaker) else 0
        played = Played(
            len(rollout.returns), mean, low, high, edits, rollout.steps, rollout.seconds, asked
        )
        told: dict[str, Any] = {**played.to_dict(), "seeds": [seeds[0], seeds[-1]],
                                "returns": rollout.returns}  # fmt: skip
        self.record.played.append(told)
        self.save_record()
        return played

    def save_record(self) -> None:
        """Save the record alone, where there is a folder."""
        if self.folder is not None:
            self.record.save(self.folder)
