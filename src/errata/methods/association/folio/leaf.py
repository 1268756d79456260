"""`Leaf`: one stored edit; `EncodedPrompt`: what a leaf is matched with; `Candidate`: a match."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

AGREED = 7.0
"""Factor on the odds where the base model begins both answers alike."""


@dataclass(frozen=True)
class Leaf:
    """One stored edit.

    The tensors are in main memory, or mapped into it from disk; `Leaves` moves those it needs to
    the model's device.

    Attributes:
        edit_id: the edit's id.
        prompt: the edit's prompt.
        subject: the words that a prompt must mention.
        target: the edit's answer.
        question: (dimensions,), what its prompt asks, see `QuestionSpace`.
        tokens: the n tokens of the answer, the end token included.
        keys: (n, hidden), the head's inputs at the positions that predict them: first the prompt's
            last token.
        values: (n, hidden), what is added to the head's inputs there, `gain` included.
    """

    edit_id: str
    prompt: str
    subject: str
    target: str
    question: Tensor
    tokens: tuple[int, ...]
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt and its tokens, and what the base model makes of it.

    Attributes:
        text: the prompt's words; in a conversation, the last question.
        ids: the prompt's tokens.
        earlier: the earlier questions of a conversation, the latest first.
        key: (hidden,), the head's input at its last token; None where it was not read.
    """

    text: str
    ids: list[int]
    earlier: tuple[str, ...] = ()
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
        prediction: 1 where the base model is sure of how its answer to either begins, and begins
            alike; -1 where it is sure and begins otherwise; 0 where it is not sure.
    """

    number: int
    edit_id: str
    subject_overlap: float
    same_question: float
    prediction: int = 0

    @property
    def score(self) -> float:
        """What candidates are ranked by and held against the threshold, 0 to 1: the odds of
        `same_question`, `AGREED` times as high where the predictions agree, and none where they
        do not.
        """
        factor = (1.0, AGREED, 0.0)[self.prediction]
        if self.same_question in (0.0, 1.0):
            return self.same_question * (factor > 0)
        odds = factor * self.same_question / (1 - self.same_question)
        return odds / (1 + odds)
