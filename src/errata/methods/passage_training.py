"""How weights learn to read passages: a model is told some edits, and is asked for them.

Each example of a round is told in one wording and asked for in another, or in the same: the loss is
NLL(target and ending). Half of them are told with the target of another example, so that what is
said can only be read, whether or not the base model knows the fact. Prompts that an edit is not
about read its passage, too: there the loss is KL(base || edited) along the base model's own answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.edit import Example
from errata.lm import LM
from errata.lm.begun import BegunRows
from errata.lm.body_reader import BodyReader
from errata.lm.encoding import Row
from errata.patches.passages import Passage, PassageReader
from errata.solvers.adapters import divergence

ANSWER_LENGTH = 8
"""The longest answer of the base model to another prompt that is kept, in tokens."""


class Settings(Protocol):
    """The settings that it goes by."""

    @property
    def passages(self) -> int: ...
    @property
    def asked(self) -> int: ...
    @property
    def locality_weight(self) -> float: ...


class Reader(Protocol):
    """What learns to read."""

    def read(self, rows: Sequence[Row]) -> list[Passage]: ...


class PassageTraining:
    """The loss of an example, and what is looked up once.

    Args:
        lm: the base model, without patches.
        patch: reads; its passages are replaced.
        reader: returns texts as passages.
        config: the settings.
        examples: all of the training.
    """

    def __init__(
        self,
        lm: LM,
        patch: PassageReader,
        reader: Reader,
        config: Settings,
        examples: Sequence[Example],
    ) -> None:
        self.lm, self.patch, self.reader, self.config = lm, patch, reader, config
        self.examples = list(examples)
        self._reader = BodyReader(lm)
        self._endings: dict[tuple[str, str], str | None] = {}
        self._others: dict[str, Row] = {}

    def loss(self, example: Example, rng: random.Random) -> Tensor:
        """Return the loss of a round, a scalar; `rng` draws other examples, and wordings."""
        lm, count = self.lm, self.config.asked - 1
        told = [example, *rng.sample(self.examples, min(count, len(self.examples)))]
        told = list({each.edit.prompt: each for each in told}.values())
        targets = [
            (each if rng.random() < 0.5 else rng.choice(self.examples)).edit.target for each in told
        ]
        passages = self.reader.read(self._rows(told, targets, rng))
        self.patch.passages = {str(place): passage for place, passage in enumerate(passages)}
        asked = self._rows(told, targets, rng)
        others = self._own_answers([rng.choice(each.others) for each in told])
        names = [self._names(place, len(told), rng) for _ in range(2) for place in range(len(told))]

        begun = BegunRows(lm, [*asked, *others])
        with torch.no_grad():
            before = begun.logits()
        with self.patch.on(lm), self.patch.giving(names):
            self.patch.begin(begun)
            after = begun.logits()
        is_asked = begun.rows < len(asked)
        loss = F.cross_entropy(after[is_asked], begun.labels[is_asked])
        kept = divergence(before[~is_asked].log_softmax(-1), after[~is_asked].log_softmax(-1))
        return loss + self.config.locality_weight * kept

    def _names(self, place: int, count: int, rng: random.Random) -> tuple[str, ...]:
        """Return the passage at a place among others, up to as many as a prompt reads."""
        most = min(self.config.passages, count)
        more = rng.sample([i for i in range(count) if i != place], rng.randint(0, most - 1))
        return tuple(map(str, rng.sample([place, *more], 1 + len(more))))

    def _rows(
        self, examples: Sequence[Example], targets: Sequence[str], rng: random.Random
    ) -> list[Row]:
        """Encode a wording of each with a target, and with the ending of its own target there."""
        pairs = [
            (rng.choice((each.edit.prompt, *each.rephrases)), each.edit.target) for each in examples
        ]
        if new := [pair for pair in dict.fromkeys(pairs) if pair not in self._endings]:
            self._endings |= dict(zip(new, self.lm.endings(new), strict=True))
        return [
            self.lm.encode(pair[0], target, self._endings[pair])
            for pair, target in zip(pairs, targets, strict=True)
        ]

    def _own_answers(self, prompts: Sequence[str]) -> list[Row]:
        """Encode prompts with the base model's own answers, generated once."""
        if new := [each for each in dict.fromkeys(prompts) if each not in self._others]:
            asked = [self.lm.encode_prompt(prompt) for prompt in new]
            answers = self._reader.continue_greedily(asked, ANSWER_LENGTH)
            for prompt, ids, answer in zip(new, asked, answers, strict=True):
                self._others[prompt] = Row((*ids, *answer), len(ids), len(answer))
        return [self._others[prompt] for prompt in prompts]
