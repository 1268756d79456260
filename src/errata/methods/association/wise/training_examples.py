"""What WISE is shown when it learns an edit: the edit's rows, earlier edits, and the prompts around
it, in scope and out.

A lesson is a function of the edit, of what its shard learned before, and of the base model. Nothing
is learned here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.background import names_in, open_prompt, prompt_about, replace_name
from errata.lm.encoding import Row
from errata.methods.association.wise.config import WiseConfig

ASKED, AT_ONCE = 128, 32
"""Texts of the background that are asked about an edit's subject, at most: so many together, until
enough is found.
"""


@dataclass(frozen=True)
class ContrastSet:
    """Prompts around an edit's own: the same question in other words, and others that it must not
    answer.
    """

    rewordings: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingExample:
    """An edit, rows in scope (prompt, target, ending), and prompts of earlier shards that must stay
    out of scope.
    """

    edit: Edit
    inside: list[Row]
    silent: list[Row]


class TrainingExamples:
    """Plans lessons.

    Args:
        background: texts and prefixes derived from the base model, see `Wise.background`.
    """

    def __init__(self, lm: LM, config: WiseConfig, background: Mapping[str, Any]) -> None:
        self.lm, self.config = lm, config
        self.texts: list[str] = background["texts"]
        self.prefixes: list[str] = background["prefixes"]
        self.prompts = [open_prompt(text) for text in self.texts]
        self.names = sorted({name for text in self.texts for name in names_in(text)})
        self._endings: dict[str, str | None] = {}
        self._around: dict[str, ContrastSet] = {}

    def lesson(
        self, edit: Edit, earlier: Sequence[Edit], silent: Sequence[Edit]
    ) -> TrainingExample:
        """Plan one edit's lesson.

        Args:
            edit: what is to be learned; it fits the model's context.
            earlier: edits that its shard knows already; some are rehearsed.
            silent: edits of earlier shards; some of their prompts are to stay out of scope.
        """
        draw = random.Random(f"{self.config.seed}/{edit.id}")
        rows = [self.row(edit)]
        prompts = [
            *(f"{prefix} {edit.prompt}" for prefix in self.prefixes),
            *self.around(edit).rewordings,
        ]
        rows += self._fitting(self.row_asking(prompt, edit) for prompt in prompts)
        agreeing = [
            other for other in earlier if other.prompt != edit.prompt
        ]  # the later of two answers is to win
        rows += [
            self.row(other)
            for other in draw.sample(agreeing, min(self.config.rehearse, len(agreeing)))
        ]
        quiet = (
            self.prompt_row(other.prompt)
            for other in draw.sample(silent, min(self.config.memo, len(silent)))
        )
        return TrainingExample(edit, rows, self._fitting(quiet))

    def around(self, edit: Edit) -> ContrastSet:
        """What the model itself would ask near the edit: of its subject, and the same of other
        subjects.

        Of the background's prompts, put to the edit's subject, those that the base model answers as
        it answers the edit's own prompt are rewordings; the rest are other questions. An edit that
        names no subject has nothing around it.
        """
        if edit.id not in self._around:
            draw = random.Random(f"{self.config.seed}/contrast/{edit.id}")
            self._around[edit.id] = (
                self._look_around(edit.prompt, edit.subject, draw)
                if edit.subject
                else ContrastSet()
            )
        return self._around[edit.id]

    def row(self, edit: Edit) -> Row:
        """The edit as it is learned, the end of the answer included."""
        return self.lm.encode(edit.prompt, edit.target, self._ending(edit))

    def row_asking(self, prompt: str, edit: Edit) -> Row | None:
        """The edit's answer behind another prompt; None if that is too long."""
        try:
            return self.lm.encode(prompt, edit.target, self._ending(edit))
        except PromptTooLongError:
            return None

    def prompt_row(self, prompt: str) -> Row | None:
        """A prompt alone; None if it is too long."""
        try:
            ids = self.lm.encode_prompt(prompt)
        except PromptTooLongError:
            return None
        return Row(tuple(ids), len(ids))

    def _look_around(self, prompt: str, subject: str, draw: random.Random) -> ContrastSet:
        most, wanted = self.config.contrast, self.config.rewordings
        if not (most or wanted):
            return ContrastSet()
        names = [name for name in self.names if name not in prompt]
        others = [
            replace_name(prompt, subject, name)
            for name in draw.sample(names, min(most, len(names)))
        ]
        told = (
            prompt_about(text, subject)
            for text in draw.sample(self.texts, min(ASKED, len(self.texts)))
        )
        asked = [
            other
            for other in dict.fromkeys(told)
            if other not in (None, prompt) and self.prompt_row(other) is not None
        ]
        (own,) = self.lm.generate([prompt], max_new_tokens=8)
        alike: list[str] = []
        unlike: list[str] = []
        for start in range(0, len(asked), AT_ONCE):
            part = asked[start : start + AT_ONCE]
            for other, answer in zip(part, self.lm.generate(part, max_new_tokens=8), strict=True):
                (alike if answer == own else unlike).append(other)
            if len(alike) >= wanted and len(unlike) >= most:
                break
        return ContrastSet(tuple(alike[:wanted]), tuple(others + unlike[:most]))

    def _ending(self, edit: Edit) -> str | None:
        if edit.id not in self._endings:
            self._endings[edit.id] = self.lm.ending_of(edit.prompt, edit.target)
        return self._endings[edit.id]

    @staticmethod
    def _fitting(rows: Iterable[Row | None]) -> list[Row]:
        return [row for row in rows if row is not None]
