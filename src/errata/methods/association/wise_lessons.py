"""What WISE is shown when it learns an edit: the edit's rows, earlier edits, and prompts that must stay out of scope.

A lesson is a function of the edit, of what its shard learned before, and of the base model. Nothing is learned here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM, Row
from errata.statistics import about, names_in, open_prompt, swapped

if TYPE_CHECKING:
    from errata.methods.association.wise import WiseConfig


@dataclass(frozen=True)
class Lesson:
    """An edit, rows in scope (prompt, target, ending), and prompts of earlier shards that must stay out of scope."""

    edit: Edit
    inside: list[Row]
    silent: list[Row]


class LessonPlanner:
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
        self._endings: dict[str, str] = {}

    def lesson(self, edit: Edit, earlier: Sequence[Edit], silent: Sequence[Edit]) -> Lesson:
        """Plan one edit's lesson.

        Args:
            edit: what is to be learned; it fits the model's context.
            earlier: edits that its shard knows already; some are rehearsed.
            silent: edits of earlier shards; some of their prompts are to stay out of scope.
        """
        draw = random.Random(f"{self.config.seed}/{edit.id}")
        rows = [self.row(edit)]
        rows += self._fitting(self.row_behind(prefix, edit) for prefix in self.prefixes)
        agreeing = [other for other in earlier if other.prompt != edit.prompt]  # the later of two answers is to win
        rows += [self.row(other) for other in draw.sample(agreeing, min(self.config.rehearse, len(agreeing)))]
        quiet = (self.prompt_row(other.prompt) for other in draw.sample(silent, min(self.config.memo, len(silent))))
        return Lesson(edit, rows, self._fitting(quiet))

    def contrast(self, edit: Edit) -> list[Row]:
        """Prompts out of the edit's scope: its question of other subjects, and other questions about its subject."""
        if not edit.subject or not self.config.contrast:
            return []
        draw = random.Random(f"{self.config.seed}/contrast/{edit.id}")
        return self._fitting(self.prompt_row(prompt) for prompt in self._contrast(edit.prompt, edit.subject, draw))

    def row(self, edit: Edit) -> Row:
        """The edit as it is learned, the end of the answer included."""
        return self.lm.encode(edit.prompt, edit.target, self._ending(edit))

    def row_behind(self, prefix: str, edit: Edit) -> Row | None:
        """The edit with a text before its prompt; None if that makes it too long."""
        try:
            return self.lm.encode(f"{prefix} {edit.prompt}", edit.target, self._ending(edit))
        except PromptTooLongError:
            return None

    def prompt_row(self, prompt: str) -> Row | None:
        """A prompt alone; None if it is too long."""
        try:
            ids = self.lm.encode_prompt(prompt)
        except PromptTooLongError:
            return None
        return Row(tuple(ids), len(ids))

    def _contrast(self, prompt: str, subject: str, draw: random.Random) -> list[str]:
        count = self.config.contrast
        names = [name for name in self.names if name not in prompt]
        others = [swapped(prompt, subject, name) for name in draw.sample(names, min(count, len(names)))]
        told = (about(text, subject) for text in draw.sample(self.texts, min(4 * count, len(self.texts))))
        asked = [other for other in told if other is not None and self.prompt_row(other) is not None][:count]
        own, *said = self.lm.generate([prompt, *asked], max_new_tokens=8)
        return others + [other for other, answer in zip(asked, said, strict=True) if answer != own]

    def _ending(self, edit: Edit) -> str:
        if edit.id not in self._endings:
            self._endings[edit.id] = self.lm.ending_of(edit.prompt, edit.target)
        return self._endings[edit.id]

    @staticmethod
    def _fitting(rows: Iterable[Row | None]) -> list[Row]:
        return [row for row in rows if row is not None]
