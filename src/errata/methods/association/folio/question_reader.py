"""`QuestionReader` reads what a text asks: states in the middle of the base model's blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import regex
import torch
from torch import Tensor

from errata.lm import LM
from errata.lm.background import names_in
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
from errata.words.parts import mentions

BATCH, TOKENS, CACHED = 32, 96, 1024
"""Texts that are read at once; their last tokens that are read; and states kept, at most."""
READING = "reading what wordings ask"
VIEWS, LAST = 2, 0
"""The views of a text; and the one that is the state at its last token."""
WORDINGS = 8
"""Version of the wordings and of the fit, part of the key of what is kept on disk."""
_SENTENCE = regex.compile(r"[.?!:\n][\"'”’»)]*\s+")
_QUOTED = regex.compile('["“«]([^"“”«»]+)["”»]')
_PRONOUN = regex.compile(
    r"\b(?:(?P<whose>its|his|their|her(?=\s+\p{L}))|it|s?he|him|her|them|they"
    r"|this\s+(?!day|week|month|season|year|decade|century|time|morning)\p{Ll}+)\b(?!['’])",
    regex.IGNORECASE,
)
_LABELS = regex.compile(
    r"^\s*(?:question|q|user|prompt|input|instruction)\s*:\s*"
    r"|\n\s*(?:answer|a|response|reply|output|assistant)\s*:\s*$",
    regex.IGNORECASE,
)
_QUOTES = " \t\n\"'“”‘’«»"


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
        groups, ways = _lines("wordings.jsonl"), _lines("intents.jsonl")
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


def without_labels(text: str) -> str:
    """Return a text without "Question:" before it and without a last line "Answer:": a model that
    has no chat template is often asked so.
    """
    return str(_LABELS.sub("", text)).strip() or text.strip()


def asked_of(text: str, subject: str) -> str:
    """Return the part of a text that asks something of a subject.

    It begins with the sentence that mentions the subject first, and is all of the text where none
    does: in a conversation, the subject may have been named before. See `with_name`.
    """
    text = without_labels(text)
    places = mentions(text, subject)
    if not places:
        return with_name(text, subject)
    return text[_beginning(text, min(start for start, _ in places)) :].strip()


def in_quotes(text: str, subject: str) -> str | None:
    """Return what a text quotes around the last mention of a subject; None where it does not."""
    start, stop = max(mentions(text, subject), default=(0, 0))
    for quoted in _QUOTED.finditer(text):
        if quoted.start() <= start < stop <= quoted.end():
            return str(quoted[1]).strip()
    return None


def question_in(text: str, subject: str) -> str:
    """Return the question that a text is about: what it quotes around the last mention of a
    subject, else the sentence of that mention, alone.
    """
    if (quoted := in_quotes(text, subject)) is not None:
        return quoted
    if not (places := mentions(text, subject)):
        return with_name(text.strip(_QUOTES), subject)
    start = max(places)[0]
    end = _SENTENCE.search(text, start)
    return text[_beginning(text, start) : end.end() if end else len(text)].strip(_QUOTES)


def with_name(text: str, subject: str) -> str:
    """Return a text with a subject in the place of its first pronoun ("it", "her", "this city").

    A text that names somebody or something keeps its pronouns: they may stand for that.
    """
    if names_in(text):
        return text
    return str(_PRONOUN.sub(lambda it: subject + ("'s" if it["whose"] else ""), text, count=1))


def with_subject(text: str, subject: str, aliases: Sequence[str]) -> str:
    """Return a text with a subject in the place of an alias, the longest that it mentions; a text
    that mentions the subject itself is as it was.
    """
    if not aliases or mentions(text, subject):
        return text
    for alias in sorted(aliases, key=len, reverse=True):
        if places := mentions(text, alias):
            for start, stop in sorted(places, reverse=True):
                text = text[:start] + subject + text[stop:]
            return text
    return text


def _beginning(text: str, place: int) -> int:
    return max((found.end() for found in _SENTENCE.finditer(text[:place])), default=0)


def _lines(name: str) -> list[dict[str, Any]]:
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
