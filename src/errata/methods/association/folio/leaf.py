"""`Leaf`: one stored edit; `EncodedPrompt`: what a leaf is matched with; `Candidate`: a match."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from errata.edit import Edit
from errata.methods.association.folio.intents import ANSWER
from errata.words.questions import asked_of

AGREED = 7.0
"""Factor on the odds where the base model begins both answers alike."""


@dataclass(frozen=True)
class Leaf:
    """One stored edit.

    The tensors are in main memory, or mapped into it from disk; `Leaves` moves those it needs to
    the model's device.

    Attributes:
        edit: the edit.
        subject: the words that a prompt must mention.
        question: (views, dimensions), what its prompt asks, see `QuestionSpace`.
        intent: in which way, see `INTENTS`.
        tokens: the tokens of the answer, the end token included.
        key: (hidden,), the head's input at its prompt's last token.
        withheld: of an edit that erases, what the base model told, which is not to be said where
            the subject is mentioned.
    """

    edit: Edit
    subject: str
    question: Tensor
    intent: int
    tokens: tuple[int, ...]
    key: Tensor
    withheld: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """What its prompt asks of the subject, in words."""
        return asked_of(self.edit.prompt, self.subject)


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt, and what the base model makes of it.

    Attributes:
        text: the prompt's words; in a conversation, the last question.
        earlier: the earlier questions of a conversation, the latest first.
        ids: the prompt's tokens; empty where it was not read.
        key: (hidden,), the head's input at its last token; None where it was not read.
    """

    text: str
    earlier: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    key: Tensor | None = None


@dataclass(frozen=True)
class Candidate:
    """A leaf whose subject a prompt mentions.

    Attributes:
        number: the leaf's number.
        edit_id: the edit's id.
        subject_overlap: share of the subject that the prompt mentions, by word weight, 0 to 1.
        same_question: how surely the prompt asks what the edit's own prompt asks, 0 to 1, see
            `QuestionSpace.scores`.
        intent: in which way it asks, see `INTENTS`.
        intent_odds: log odds of its asking in the way in which the edit's prompt does.
        prediction: 1 where the base model is sure of how its answer to either begins, and begins
            alike; -1 where it is sure and begins otherwise; 0 where it is not sure.
        is_read: whether the prompt asks in a way that the fact is read for, and is about it.
    """

    number: int
    edit_id: str
    subject_overlap: float
    same_question: float
    intent: int = ANSWER
    intent_odds: float = math.inf
    prediction: int = 0
    is_read: bool = False

    @property
    def same_intent(self) -> bool:
        """Whether it is asked as the edit's prompt asks; that the predictions agree counts, too."""
        return self.intent_odds + (math.log(AGREED) if self.prediction == 1 else 0.0) >= 0

    @property
    def score(self) -> float:
        """What candidates are ranked by and held against the threshold, 0 to 1: the odds of
        `same_question`, `AGREED` times as high where the predictions agree, and none where they
        do not or where it is asked in another way.
        """
        factor = (1.0, AGREED, 0.0)[self.prediction] * self.same_intent
        if self.same_question in (0.0, 1.0):
            return self.same_question * (factor > 0)
        odds = factor * self.same_question / (1 - self.same_question)
        return odds / (1 + odds)
