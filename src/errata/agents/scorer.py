"""`ActionScorer`: how likely a language model says each action; `Speaker`: a policy made of that.

Nothing is generated and nothing parsed: each action is scored by the log-probability of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from statistics import fmean
from typing import Any

from errata.agents.game import Cell, Game
from errata.errors import UsageError
from errata.lm import LM, Score
from errata.model import EditModel
from errata.progress import report

SCORING = "reading states"
PART = 32
"""Prompts that are scored between two reports of progress."""
Scores = tuple[float, ...]


class ActionScorer:
    """Scores actions as answers to prompts; each prompt once for the same edits.

    Args:
        model: a language model, or one with edits.
        actions: the words of the actions.

    Raises:
        UsageError: the tokenizer writes one action as it writes another, or as its beginning.
    """

    def __init__(self, model: LM | EditModel, actions: Sequence[str]) -> None:
        self.model, self.actions = model, tuple(actions)
        self._known: dict[str, Scores] = {}
        self._edits: tuple[str, ...] = ()
        lm = model.lm if isinstance(model, EditModel) else model
        self._ids = {action: _ids(lm, action) for action in self.actions}
        for one, other in permutations(self.actions, 2):
            if self._ids[other][: len(self._ids[one])] == self._ids[one]:
                raise UsageError(
                    f"this model's tokenizer cannot tell the actions {one!r} and {other!r} apart: "
                    "their tokens begin alike; play with another model."
                )
        self.asked = 0
        """Prompts that the model has read."""

    def scores(self, prompts: Sequence[str]) -> list[Scores]:
        """Return the log-probability of each action as the answer to each prompt.

        Raises:
            PromptTooLongError: a prompt does not fit the model's context.
        """
        self._forget_if_edited()
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        for start in range(0, len(new), PART):
            part = new[start : start + PART]
            self._known.update(zip(part, self._read(part), strict=True))
            self.asked += len(part)
            report(SCORING, start + len(part), len(new))
        return [self._known[prompt] for prompt in prompts]

    def _forget_if_edited(self) -> None:
        edits = (
            tuple(edit.id for edit in self.model.edits) if isinstance(self.model, EditModel) else ()
        )
        if edits != self._edits:
            self._known, self._edits = {}, edits

    def _read(self, prompts: Sequence[str]) -> list[Scores]:
        """Read prompts; where each action is one token, once each, else once for each action."""
        if all(len(ids) == 1 for ids in self._ids.values()):
            columns = [ids[0] for ids in self._ids.values()]
            pairs = [(prompt, self.actions[0]) for prompt in prompts]
            found = self.model.score(pairs, whole=True)
            return [tuple(_whole(each)[0, columns].tolist()) for each in found]
        pairs = [(prompt, action) for prompt in prompts for action in self.actions]
        sums = [-each.loss * len(each.predicted) for each in self.model.score(pairs)]
        count = len(self.actions)
        return [tuple(sums[at : at + count]) for at in range(0, len(sums), count)]


def _ids(lm: LM, action: str) -> tuple[int, ...]:
    row = lm.encode("?", action)
    return row.ids[row.prompt_length :]


def _means(scores: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(each) for each in zip(*scores, strict=True)]


def _whole(score: Score) -> Any:
    return score.log_probs


class Speaker:
    """A policy that does what a language model says: in each cell the likeliest action.

    Args:
        game: the game.
        scorer: scores its actions.
        prompt_of: asks for the action in a cell; None: as edits ask for it.
        among: groups of prompts, by what they show, whose mean scores are taken from each score, so
            that what the model likes to say anyway does not count (batch calibration, Zhou et al.,
            arXiv 2309.17249), each group as much as another: else what is shown in most prompts
            would pass for liked.
    """

    def __init__(
        self,
        game: Game,
        scorer: ActionScorer,
        prompt_of: Callable[[Cell], str] | None = None,
        among: Sequence[Sequence[str]] = (),
    ) -> None:
        self.game, self.scorer = game, scorer
        self.prompt_of = game.prompt if prompt_of is None else prompt_of
        self.among = among

    def act(self, cells: Sequence[Cell], observations: Sequence[Any]) -> list[int]:
        """Score each cell's prompt and take the likeliest action, the first of equals."""
        found = self.scorer.scores([self.prompt_of(cell) for cell in cells])
        prior = [0.0] * len(self.game.actions)
        if self.among:
            means = [_means(self.scorer.scores(group)) for group in self.among]
            prior = _means(means)
        return [
            max(range(len(prior)), key=lambda action: scores[action] - prior[action])
            for scores in found
        ]
