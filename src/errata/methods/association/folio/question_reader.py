"""`QuestionReader` reads what a text asks: states in the middle of the base model's blocks, and the
words that are asked with.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.lm import LM
from errata.lm.encoding import in_batches
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.intents import (
    ANSWER,
    INTENTS,
    IntentClassifier,
    fit_intents,
)
from errata.methods.association.folio.question_space import (
    WEIGHTS,
    QuestionSpace,
    fit_space,
)
from errata.progress import report
from errata.words.questions import last_question, shared_form, without_subject

BATCH, TOKENS, CACHED = 32, 96, 1024
"""Texts that are read at once; their last tokens that are read; and states kept, at most."""
READING = "reading what wordings ask"
VIEWS, LAST = 3, 0
"""The views of a question; and the one that is the state at its last token."""
COMMON = 1e-3
"""Share of the wordings' tokens at which a token counts half as much as a rare one."""
WORDINGS = 11
"""Version of the wordings and of the fit, which what is kept on disk names."""

_Key = TypeVar("_Key")


class Question(NamedTuple):
    """A text that asks something, and of what or whom; an empty subject stands for none."""

    text: str
    subject: str = ""


class Wording(NamedTuple):
    """A wording that comes with errata.

    Attributes:
        question: the text, and its subject.
        relation: the number of what it asks.
        about: the subject with its kind: "person Thomas Pike".
    """

    question: Question
    relation: int
    about: str


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
        self._read: dict[
            tuple[str, Any], Tensor
        ] = {}  # replaced, not emptied: other threads may read it

    def read(self, questions: Sequence[Question]) -> dict[Question, Tensor]:
        """Return the views of each question, (views, hidden) in fp32; what was read is kept.

        They are the state at the text's last token; the mean state over its second half; and the
        mean of the input embeddings of its last question, without the subject, where common tokens
        count less (Arora et al., "A Simple but Tough-to-Beat Baseline for Sentence Embeddings",
        ICLR 2017).
        """
        states = self._kept([text for text, _ in questions], self._states)
        asked = self._kept(questions, self._asked_with)
        return {each: torch.cat([states[each.text], asked[each]]) for each in questions}

    def _kept(
        self, keys: Sequence[_Key], read: Callable[[list[_Key]], Sequence[Tensor]]
    ) -> dict[_Key, Tensor]:
        """Return what is read for each key; what was read before is not read again."""
        place, kept = f"{self.lm.model.dtype} {self.lm.device}", self._read
        found = {key: kept[place, key] for key in keys if (place, key) in kept}
        if new := [key for key in dict.fromkeys(keys) if key not in found]:
            read_now = dict(zip(new, read(new), strict=True))
            found |= read_now
            if len(self._read) > CACHED:
                self._read = {}
            self._read.update(((place, key), each) for key, each in read_now.items())
        return found

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the two views of each text that are states, (2, hidden) in fp32."""
        rows = [self.lm.encode_text(text)[-TOKENS:] for text in texts]

        def read(part: list[list[int]]) -> list[Tensor]:
            return list(self.base.two_views(self._block, part))

        return in_batches(rows, read, BATCH, size=len)

    @torch.no_grad()
    def _asked_with(self, questions: Sequence[Question]) -> list[Tensor]:
        """Return the view of each question that is its words, (1, hidden) in fp32."""
        embeddings, hidden = self.lm.model.get_input_embeddings(), self.lm.architecture.hidden_size

        def read(part: list[list[int]]) -> list[Tensor]:
            lengths, tokens = [len(row) for row in part], [token for row in part for token in row]
            vectors = embeddings(torch.tensor([tokens], device=self.lm.device))[0].float()
            vectors = F.pad(vectors, (0, hidden - vectors.shape[-1]))  # some models' are smaller
            weights = torch.tensor([self._weight(token) for token in tokens])[:, None]
            parts = zip(
                torch.split(vectors * weights.to(vectors.device), lengths),
                torch.split(weights, lengths),
                strict=True,
            )
            return [each.sum(0, keepdim=True) / float(weight.sum()) for each, weight in parts]

        return in_batches(self._outside(questions), read, BATCH, size=len)

    def _outside(self, questions: Sequence[Question]) -> list[list[int]]:
        """Return the last tokens of each question's last sentence without its subject: what was
        told before it is not asked.
        """
        texts = [f" {_asked(each)}" for each in questions]
        rows = zip(texts, self.lm.encode_pieces(texts), strict=True)
        return [(ids or self.lm.encode_text(text))[-TOKENS:] for text, ids in rows]

    def _weight(self, token: int) -> float:
        return COMMON / (COMMON + self._shares.get(token, 0.0))

    @cached_property
    def _shares(self) -> dict[int, float]:
        """Token -> its share of the wordings' tokens."""
        rows = self._outside([each.question for each in wordings()])
        counts = Counter(token for row in rows for token in row)
        return {token: count / counts.total() for token, count in counts.items()}

    def fit(self, false_route: float) -> tuple[QuestionSpace, IntentClassifier]:
        """Fit what tells questions apart on the wordings that come with errata.

        See `fit_space` and `fit_intents`.
        """
        known, ways = wordings(), lines_of("intents.jsonl")
        asked = [(text, INTENTS.index(way["intent"])) for way in ways for text in way["texts"]]
        questions = [*(each.question for each in known), *(Question(text) for text, _ in asked)]
        read: list[Tensor] = []

        def some(part: list[Question]) -> list[Tensor]:
            report(READING, len(read), len(questions))
            states = self._states([each.text for each in part])
            read.extend(map(torch.cat, zip(states, self._asked_with(part), strict=True)))
            return read[-len(part) :]

        views = torch.stack(
            in_batches(questions, some, 4 * BATCH, size=lambda each: len(each.text))
        ).cpu()
        relations = [each.relation for each in known]
        intents = [ANSWER] * len(known) + [intent for _, intent in asked]
        subjects = [each.about for each in known]

        def form(one: int, other: int) -> float:
            text, subject = known[one].question
            return shared_form(text, known[other].question.text, subject)

        space = fit_space(views[: len(known)], relations, subjects, false_route, WEIGHTS, form)
        return space, fit_intents(views[:, LAST], intents, relations)


@lru_cache(maxsize=1 << 13)  # errata's own wordings are asked for with every model
def _asked(question: Question) -> str:
    """Return a question's last sentence without its subject."""
    return last_question(without_subject(*question) or question.text)


def wordings() -> list[Wording]:
    """Return the wordings that come with errata."""
    return [
        Wording(Question(text, name), number, f"{group['subject']} {name}")
        for number, group in enumerate(lines_of("wordings.jsonl"))
        for text, name in zip(group["wordings"], group["about"], strict=True)
    ]


def lines_of(name: str) -> list[dict[str, Any]]:
    """Return the lines of a file of texts that comes with errata."""
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
