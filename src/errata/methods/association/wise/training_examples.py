"""What WISE trains an edit on: its rows, rehearsed edits, and prompts in and out of its scope.

A training example is a function of the edit, of what its shard learned before, and of the base
model. The training itself is in `writer.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.background import open_prompt, prompt_about, replace_name
from errata.lm.body_reader import BodyReader
from errata.lm.encoding import Row
from errata.methods.association.wise.config import WiseConfig
from errata.words.names import names_in

CANDIDATES = 8
"""Background prompts put to an edit's subject and answered at a time."""
COMPARED_TOKENS = 8
"""Tokens of the answers that tell whether two prompts ask the same."""


@dataclass(frozen=True)
class ContrastSet:
    """Prompts near an edit's own.

    Attributes:
        rewordings: prompts in its scope, which ask the same in other words.
        contrasts: prompts out of its scope.
    """

    rewordings: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingExample:
    """What an edit is trained on.

    Attributes:
        edit: the edit.
        in_scope: rows to learn: prompt, target, ending.
        memo: prompts of earlier shards' edits, which must stay out of scope.
    """

    edit: Edit
    in_scope: list[Row]
    memo: list[Row]


class TrainingExamples:
    """Builds training examples.

    Args:
        lm: the base model, without patches.
        config: the settings of WISE.
        background: texts and prefixes derived from the base model, see `Wise.background`.

    Attributes:
        prompts: the background texts as prompts.
        reader: reads prompts with the base model.
    """

    def __init__(self, lm: LM, config: WiseConfig, background: Mapping[str, Any]) -> None:
        self.lm, self.config = lm, config
        self.reader = BodyReader(lm)
        self.texts: list[str] = background["texts"]
        self.prefixes: list[str] = background["prefixes"]
        self.prompts = [open_prompt(text) for text in self.texts]
        self.names = sorted({name for text in self.texts for name in names_in(text)})
        self._endings: dict[str, str | None] = {}
        self._contrast_sets: dict[str, ContrastSet] = {}

    def build(self, edit: Edit, earlier: Sequence[Edit], memo: Sequence[Edit]) -> TrainingExample:
        """Build the training example of one edit.

        Args:
            edit: what is to be learned; it fits the model's context.
            earlier: edits that its shard knows already; some are rehearsed.
            memo: edits of earlier shards; some of their prompts are to stay out of scope.
        """
        draw = random.Random(f"{self.config.seed}/{edit.id}")
        prompts = [
            *(f"{prefix} {edit.prompt}" for prefix in self.prefixes),
            *self.contrast_set(edit).rewordings,
        ]
        rows = [self.row(edit), *_fitting(self.rephrased_row(prompt, edit) for prompt in prompts)]
        # of two answers to one prompt the later wins, so the earlier is not rehearsed
        others = [other for other in earlier if other.prompt != edit.prompt]
        rehearsed = draw.sample(others, min(self.config.rehearse, len(others)))
        rows += [self.row(other) for other in rehearsed]
        memo = draw.sample(memo, min(self.config.memo, len(memo)))
        return TrainingExample(edit, rows, self.prompt_rows(other.prompt for other in memo))

    def contrast_set(self, edit: Edit) -> ContrastSet:
        """Return self-generated prompts about the edit's subject, and its prompt about others.

        The background's prompts are put to the edit's subject: those that the base model answers as
        it answers the edit's own prompt are rewordings, the others are contrasts. Empty for an edit
        without a subject.
        """
        if edit.id not in self._contrast_sets:
            self._contrast_sets[edit.id] = (
                self._generate(edit, edit.subject) if edit.subject else ContrastSet()
            )
        return self._contrast_sets[edit.id]

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Return how the base model begins to answer prompts, `COMPARED_TOKENS` tokens of it."""
        rows = [self.lm.encode_prompt(prompt) for prompt in prompts]
        return [self.lm.decode(ids) for ids in self.reader.continue_greedily(rows, COMPARED_TOKENS)]

    def row(self, edit: Edit) -> Row:
        """Encode the edit as it is learned, with its ending."""
        return self.lm.encode(edit.prompt, edit.target, self._ending(edit))

    def rephrased_row(self, prompt: str, edit: Edit) -> Row | None:
        """Encode the edit's answer to another prompt; None if that is too long."""
        try:
            return self.lm.encode(prompt, edit.target, self._ending(edit))
        except PromptTooLongError:
            return None

    def prompt_row(self, prompt: str) -> Row | None:
        """Encode a prompt alone; None if it is too long."""
        try:
            ids = self.lm.encode_prompt(prompt)
        except PromptTooLongError:
            return None
        return Row(tuple(ids), len(ids))

    def prompt_rows(self, prompts: Iterable[str]) -> list[Row]:
        """Encode those prompts alone that are not too long."""
        return _fitting(map(self.prompt_row, prompts))

    def _generate(self, edit: Edit, subject: str) -> ContrastSet:
        most, wanted = self.config.contrast, self.config.rewordings
        if not (most or wanted):
            return ContrastSet()
        draw = random.Random(f"{self.config.seed}/contrast/{edit.id}")
        names = [name for name in self.names if name not in edit.prompt]
        names = draw.sample(names, min(most, len(names)))
        texts = draw.sample(self.texts, len(self.texts))
        candidates = [
            prompt
            for prompt in dict.fromkeys(prompt_about(text, subject) for text in texts)
            if prompt not in (None, edit.prompt) and self.prompt_row(prompt) is not None
        ]
        own: str | None = None
        alike: list[str] = []
        unlike: list[str] = []
        for start in range(0, len(candidates), CANDIDATES):
            prompts, found = candidates[start : start + CANDIDATES], len(alike)
            if own is None:
                own, *answers = self.answers([edit.prompt, *prompts])
            else:
                answers = self.answers(prompts)
            for prompt, answer in zip(prompts, answers, strict=True):
                (alike if answer == own else unlike).append(prompt)
            enough = len(alike) >= wanted and len(unlike) >= most
            if enough or len(alike) == found:  # where none asks the same, more will not
                break
        of_others = (replace_name(edit.prompt, subject, name) for name in names)
        return ContrastSet(tuple(alike[:wanted]), (*of_others, *unlike[:most]))

    def _ending(self, edit: Edit) -> str | None:
        if edit.id not in self._endings:
            self._endings[edit.id] = self.lm.ending_of(edit.prompt, edit.target)
        return self._endings[edit.id]


def _fitting(rows: Iterable[Row | None]) -> list[Row]:
    return [row for row in rows if row is not None]
