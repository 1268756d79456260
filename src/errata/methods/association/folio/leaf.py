"""`Leaf`: one stored edit; `EncodedPrompt`: what a leaf is matched with; `Candidate`: a match."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Prefix = tuple[int, ...]
"""Tokens with which the base model begins its answer whatever the prompt asks."""


@dataclass(frozen=True)
class Question:
    """A prompt, read by the base model as the router stores it.

    Attributes:
        prompt: its words.
        ids: its tokens.
        key: (hidden,), the head's input at its last token, in fp32.
        answer_prefix: see `Calibrator.answer_prefixes`; mostly empty.
        query_state: (hidden,), the head's input at the end of prompt and answer prefix, in fp32.
    """

    prompt: str
    ids: list[int]
    key: Tensor
    answer_prefix: Prefix
    query_state: Tensor

    @property
    def encoded(self) -> EncodedPrompt:
        """The prompt as one that is asked."""
        return EncodedPrompt(self.prompt, self.ids, self.key)


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
        answer_prefix: see `Calibrator.answer_prefixes`; mostly empty.
        query_state: (hidden,), the head's input at the end of prompt and answer prefix.
        tokens: the n tokens of the answer, the end token included.
        keys: (n, hidden), the head's inputs at the positions that predict them: first the prompt's
            last token.
        values: (n, hidden), what is added to the head's inputs there, `gain` included.
    """

    edit_id: str
    prompt: str
    subject: str
    target: str
    answer_prefix: Prefix
    query_state: Tensor
    tokens: tuple[int, ...]
    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt, its tokens and the base model's state at its end.

    Attributes:
        text: the prompt's words; in a conversation, the last question.
        ids: the prompt's tokens.
        key: (hidden,), the head's input at its last token.
        earlier: the earlier questions of a conversation, the latest first.
    """

    text: str
    ids: list[int]
    key: Tensor
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A leaf whose subject a prompt mentions.

    Attributes:
        number: the leaf's number.
        edit_id: the edit's id.
        subject_overlap: share of the subject that the prompt mentions, by word weight, 0 to 1.
        prediction_overlap: Bhattacharyya coefficient of the base model's next-token distributions
            for the prompt and for the edit's own prompt, sum_t sqrt(p_t q_t), 0 to 1.
    """

    number: int
    edit_id: str
    subject_overlap: float
    prediction_overlap: float

    @property
    def score(self) -> float:
        """What candidates are ranked by and held against the threshold: the prediction overlap."""
        return self.prediction_overlap
