"""`QuestionReader` reads what a text asks: states in the middle of the base model's blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from errata.lm import LM
from errata.lm.encoding import in_batches
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.intents import (
    ANSWER,
    INTENTS,
    IntentClassifier,
    fit_intents,
)
from errata.methods.association.folio.question_space import QuestionSpace, fit_space
from errata.progress import report

BATCH, TOKENS, CACHED = 32, 96, 1024
"""Texts that are read at once; their last tokens that are read; and states kept, at most."""
READING = "reading what wordings ask"
VIEWS, LAST = 2, 0
"""The views of a text; and the one that is the state at its last token."""
WORDINGS = 8
"""Version of the wordings and of the fit, part of the key of what is kept on disk."""


class QuestionReader:
    """Reads texts alone, outside of any template or conversation. Nothing above the middle runs.

    Args:
        base: the base model's head, whose body reads.
    """

    def __init__(self, base: BaseHead) -> None:
        self.base = base
        self.lm: LM = base.lm
        middle = max(0, self.lm.architecture.n_layers // 2 - 1)
        self._block = self.lm.architecture.block(self.lm.model, middle)
        self._read: dict[str, Tensor] = {}  # replaced, not emptied: other threads may read it

    def read(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the states (views, hidden) of each text, see `states`; what was read is kept."""
        place = f"{self.lm.model.dtype} {self.lm.device} "
        kept = self._read
        found = {text: kept[place + text] for text in texts if place + text in kept}
        if new := [text for text in dict.fromkeys(texts) if text not in found]:
            states = dict(zip(new, self.states(new), strict=True))
            found |= states
            if len(self._read) > CACHED:
                self._read = {}
            self._read.update((place + text, state) for text, state in states.items())
        return found

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """Return the views of each text: the state at its last token, and the mean over its second
        half, (texts, 2, hidden) in fp32.
        """
        rows = [self.lm.encode_text(text)[-TOKENS:] for text in texts]

        def read(part: list[list[int]]) -> list[Tensor]:
            return list(self.base.two_views(self._block, part))

        return torch.stack(in_batches(rows, read, BATCH, size=len))

    def fit(self, false_route: float) -> tuple[QuestionSpace, IntentClassifier]:
        """Fit what tells questions apart on the wordings that come with errata.

        See `fit_space` and `fit_intents`.
        """
        groups, ways = lines_of("wordings.jsonl"), lines_of("intents.jsonl")
        wordings = [
            (text, number, f"{group['subject']} {name}")
            for number, group in enumerate(groups)
            for text, name in zip(group["wordings"], group["about"], strict=True)
        ]
        asked = [(text, INTENTS.index(way["intent"])) for way in ways for text in way["texts"]]
        texts = [*(text for text, _, _ in wordings), *(text for text, _ in asked)]
        read: list[Tensor] = []

        def some(part: list[str]) -> list[Tensor]:
            report(READING, len(read), len(texts))
            read.extend(self.states(part))
            return read[-len(part) :]

        states = torch.stack(in_batches(texts, some, 4 * BATCH, size=len)).cpu()
        _, relations, subjects = zip(*wordings, strict=True)
        intents = [ANSWER] * len(wordings) + [intent for _, intent in asked]
        space = fit_space(states[: len(wordings)], relations, subjects, false_route)
        return space, fit_intents(states[:, LAST], intents, relations)


def lines_of(name: str) -> list[dict[str, Any]]:
    """Return the lines of a file of texts that comes with errata."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
