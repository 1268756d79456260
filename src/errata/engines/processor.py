"""`EditProcessor`: exported edits, for any engine: token ids and logits in, logits out.

It needs numpy and no model. Which edit answers is decided once per prompt, as Folio decides it, on
words and on `StaticSpace`; then each next token of its answer is made as likely as wanted, as long
as what was said so far is the answer's beginning. All else is the engine's own, to the bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from errata.engines.space import StaticSpace
from errata.engines.tokens import Span, TokenTexts
from errata.errors import ArtifactError
from errata.words.names import NameIndex, WordWeights, names_in
from errata.words.parts import mentions, words
from errata.words.questions import (
    NAMED,
    asked_of,
    in_quotes,
    names_answer,
    question_in,
    with_subject,
    without_labels,
)
from errata.words.turns import TurnMarks

FORMAT = 1
SETTINGS, EDITS, ARRAYS = "export.json", "edits.jsonl", "arrays.npz"
SAME = 0.5
"""The score from which an edit answers."""
MOST = 1 - 1e-7
"""The highest probability that a token is given."""


@dataclass(frozen=True)
class StoredEdit:
    """An edit, as it was exported.

    Attributes:
        id, prompt, subject, aliases: the edit's; the subject is what a prompt must mention.
        target: what is said, as text.
        asked: what its prompt asks, as text.
        intent: in which way, as a place in Folio's `INTENTS`.
        tokens: what is said, the end token included; those of the later edit, where one answers the
            same question otherwise.
        says: the id of the edit whose answer that is.
    """

    id: str
    prompt: str
    target: str
    subject: str
    aliases: tuple[str, ...]
    asked: str
    intent: int
    tokens: tuple[int, ...]
    says: str


@dataclass(frozen=True)
class Route:
    """What a prompt is answered with.

    Attributes:
        edit_id: the edit that answers; None: the model's own answer.
        tokens: what is said.
        signs: edit id -> (share of its subject that is mentioned, how surely the same is asked, log
            odds of its being asked in the same way), of the edits whose subject is mentioned.
    """

    edit_id: str | None = None
    tokens: tuple[int, ...] = ()
    signs: dict[str, tuple[float, float, float]] | None = None

    def next_token(self, said: Sequence[int]) -> int | None:
        """Return the token to be said behind those that were; None: the engine's own."""
        count = len(said)
        if count < len(self.tokens) and tuple(said) == self.tokens[:count]:
            return self.tokens[count]
        return None


NOTHING = Route()


class EditProcessor:
    """Exported edits; `load` reads those of a folder.

    Args:
        settings: of the export, see `exporting.py`.
        arrays: those of `StaticSpace` and `TokenTexts`, and the edits' questions.
        edits: the fields of `StoredEdit`, for each.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        edits: Sequence[Mapping[str, Any]],
    ) -> None:
        self.base: str = settings["base"]
        self.confidence = min(float(settings["confidence"]), MOST)
        self.chat = bool(settings["chat"])
        self._front, self._back = settings["front"], settings["back"]
        self._marks = TurnMarks(**settings["marks"])
        self.texts = TokenTexts(arrays["bytes"], arrays["ends"])
        self.space = StaticSpace.of(arrays)
        self._questions = np.asarray(arrays["questions"], np.float32)
        if len(self._questions) != len(edits):
            raise ValueError(f"{len(edits)} edits, and {len(self._questions)} vectors of questions")
        counts = WordWeights(settings["counts"], settings["texts"])
        self._mentions = NameIndex(counts, settings["min_subject_overlap"])
        self.edits = [
            StoredEdit(
                **{**each, "aliases": tuple(each["aliases"]), "tokens": tuple(each["tokens"])}
            )
            for each in edits
        ]
        for number, edit in enumerate(self.edits):
            self._mentions.add(number, edit.subject, edit.prompt)
            for alias in edit.aliases:
                self._mentions.add(number, alias)

    @classmethod
    def load(cls, folder: str | Path) -> EditProcessor:
        """Read a folder that `errata export` wrote.

        Raises:
            ArtifactError: it is missing, damaged, or of another version.
        """
        try:
            settings = json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))
            if settings.get("format") != FORMAT:
                raise ArtifactError(
                    f"{folder}: the export's format is {settings.get('format')!r}; this errata "
                    f"reads {FORMAT}. Export again."
                )
            with np.load(Path(folder) / ARRAYS) as found:
                arrays = {name: found[name] for name in found.files}
            lines = (Path(folder) / EDITS).read_text(encoding="utf-8").splitlines()
            return cls(settings, arrays, [json.loads(line) for line in lines])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile) as error:
            raise ArtifactError(
                f"{folder}: no export that can be read ({error}); `errata export` writes one."
            ) from error

    # one prompt

    def route(self, prompt: Sequence[int]) -> Route:
        """Decide what a prompt's token ids are answered with."""
        text, spans = self.texts.read(prompt)
        question, *earlier = self._user_words(text)
        overlaps = self._overlaps(question, earlier)
        if not overlaps:
            return NOTHING
        at = max(0, text.rfind(question))
        ids = [token for token, (start, end) in zip(prompt, spans, strict=True)
               if end > at and start < at + len(question)]  # fmt: skip
        spans = [(start - at, end - at) for start, end in spans
                 if end > at and start < at + len(question)]  # fmt: skip
        asking = without_labels(question)
        odds = self.space.intent_odds(self._tokens(question, asking, "", ids, spans))
        signs, best = {}, (SAME, -1)
        for number, overlap in overlaps.items():
            score = self._score(number, question, ids, spans)
            way = float(odds[self.edits[number].intent])
            if self._names_answer(self.edits[number], question):
                way -= NAMED
            signs[self.edits[number].id] = (overlap, score, way)
            if (score == 1 or way >= 0) and (score, number) >= best:
                best = (score, number)
        if best[1] < 0:
            return Route(signs=signs)
        edit = self.edits[best[1]]
        return Route(edit.says, edit.tokens, signs)

    def change(self, route: Route, said: Sequence[int], logits: np.ndarray) -> np.ndarray:
        """Return the next token's logits, (vocabulary,), as the edit wants them.

        Args:
            route: the prompt's, see `route`.
            said: the tokens of the answer so far.
            logits: the engine's; they are not changed. What it forbids (-inf) stays forbidden.
        """
        token = route.next_token(said)
        if token is None or token >= len(logits) or logits[token] == -np.inf:
            return logits
        others = np.delete(logits.astype(np.float64), token)
        most = others.max()
        if most == -np.inf:
            return logits
        total = most + math.log(np.exp(others - most).sum())
        wanted = total + math.log(self.confidence / (1 - self.confidence))
        if logits[token] >= wanted:
            return logits
        changed = logits.copy()
        changed[token] = wanted
        return changed

    def question_of(self, ids: Sequence[int], text: str, subject: str) -> np.ndarray:
        """Return the vector of what a text asks of a subject, (views, dimensions).

        Args:
            ids: the text's tokens.
        """
        spans = self.texts.read(ids)[1]
        return self.space.vector(self._tokens(text, asked_of(text, subject), subject, ids, spans))

    def intent_of(self, ids: Sequence[int], margin: float) -> int:
        """Return in which way an edit's prompt asks, as a place in Folio's `INTENTS`.

        Args:
            margin: the log odds by which another intent than the first must be likelier.
        """
        odds = self.space.intent_odds(ids)
        odds[0] += margin
        return int(odds.argmax())

    def _names_answer(self, edit: StoredEdit, question: str) -> bool:
        """Whether a question names what the edit says, and the edit's own prompt does not."""
        asked = asked_of(with_subject(question, edit.subject, edit.aliases), edit.subject)
        return names_answer(asked, edit.subject, edit.target) and not names_answer(
            edit.asked, edit.subject, edit.target
        )

    def _score(
        self, number: int, question: str, ids: Sequence[int], spans: Sequence[Span]
    ) -> float:
        """Return how surely a question asks what an edit's own prompt asks."""
        edit = self.edits[number]
        named = with_subject(question, edit.subject, edit.aliases)
        subject = edit.subject
        if named != question:
            subject = next((each for each in edit.aliases if mentions(question, each)), subject)
        parts = [asked_of(named, edit.subject)]
        own = [asked_of(question, subject)]
        if in_quotes(named, edit.subject) is not None:
            parts.append(question_in(named, edit.subject))
            own.append(question_in(question, subject))
        if edit.asked in parts:
            return 1.0
        vectors = self._questions[number][None]
        return max(
            float(self.space.scores(self.space.vector(tokens), vectors)[0])
            for tokens in (self._tokens(question, part, subject, ids, spans) for part in own)
        )

    def _tokens(
        self, text: str, part: str, subject: str, ids: Sequence[int], spans: Sequence[Span]
    ) -> list[int]:
        """Return the tokens of a part of a text that are no part of the subject."""
        start = max(0, text.find(part))
        end = start + len(part)
        out = mentions(text, subject) if subject else []
        found = [
            token
            for token, (first, last) in zip(ids, spans, strict=True)
            if last > start and first < end and not any(first < b and a < last for a, b in out)
        ]
        return found or list(ids)

    def _user_words(self, text: str) -> list[str]:
        """Return the user's turns, the last first; the whole text where there are none."""
        spans = self._marks.spans(text) if self.chat else []
        if spans:
            return [text[start:end].strip() for start, end in reversed(spans)]
        if self.chat and text.startswith(self._front) and text.endswith(self._back):
            text = text[len(self._front) : len(text) - len(self._back)]
        return [text.strip()]

    def _overlaps(self, question: str, earlier: Sequence[str]) -> dict[int, float]:
        """Return the edits whose subject is mentioned, see `Leaves.subject_overlaps`."""
        names: set[str] = set()
        for text in (question, *earlier):
            found = {
                number: share
                for number, share in self._mentions.find(text).items()
                if names <= set(words(self.edits[number].prompt))
            }
            if found:
                return found
            names |= {word for name in names_in(text) for word in words(name)}
        return {}
