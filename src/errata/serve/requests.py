"""`Request`: an answer that is wanted; `Piece`: what is new of it; `Answers`: a batch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from errata.errors import ErrataError
from errata.lm import LM
from errata.patches.outcome import Outcome
from errata.serve.sampling import RowChoosers, Sampling, TokenChoice, TokenChooser
from errata.serve.text import GrowingText


class StoppingError(ErrataError, RuntimeError):
    """The engine is closed, or is closing: no request is taken any more."""


@dataclass
class Piece:
    """What is new of an answer.

    Attributes:
        text: characters since the last piece.
        choices: the tokens since the last piece.
        version: of the model that answers; the same in all pieces.
        settled: how many edits of that version are in the weights that answer.
        outcome: which edits answer; None where the method does not tell.
        finish: in the last piece, `stop` or `length`.
        error: in place of an answer, what went wrong.
    """

    text: str = ""
    choices: list[TokenChoice] = field(default_factory=list)
    version: int = 0
    settled: int = 0
    outcome: Outcome | None = None
    finish: str | None = None
    error: Exception | None = None


@dataclass
class Request:
    """One answer that is wanted.

    Attributes:
        ids: the prompt's token ids.
        sampling: how it is answered.
        edited: by the model with its edits; otherwise by the base model.
        told: called with every piece of the answer, in a thread of the engine.
    """

    ids: tuple[int, ...]
    sampling: Sampling
    edited: bool
    told: Callable[[Piece], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """End the answer with its next token: nobody waits for it any more."""
        self.cancelled = True


class Answers(StoppingCriteria):  # type: ignore[misc]
    """The answers of a batch while they grow; tells each row what is new, and when to stop."""

    def __init__(self, lm: LM, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.version = self.settled = 0
        self.outcomes: Sequence[Outcome | None] = [None] * len(requests)
        self._ends = lm.end_ids
        self._choosers = [TokenChooser(request.sampling) for request in requests]
        self._ended = [False] * len(requests)

        def decode(ids: list[int]) -> str:
            return str(lm.tokenizer.decode(ids, skip_special_tokens=True))

        self._texts = [GrowingText(decode, request.sampling.stops) for request in requests]
        self.processor = RowChoosers(self._choosers, self._ended)

    def decided(self, outcomes: Sequence[Outcome | None]) -> None:
        """Hear which edits answer the rows."""
        self.outcomes = list(outcomes)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        """Tell each row's newest token; return which rows have ended, (batch,) bool."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._ended[row]:
                self._tell(row, token)
        return torch.tensor(self._ended, device=input_ids.device)

    def _tell(self, row: int, token: int) -> None:
        request, text, choices = self.requests[row], self._texts[row], self._choosers[row].choices
        is_end = token in self._ends
        new = "" if is_end else text.add(token)
        finish = None
        if is_end or text.stopped:
            finish = "stop"
        elif len(choices) >= request.sampling.max_tokens:
            finish = "length"
        if finish is not None:
            new += text.end()
        self._ended[row] = finish is not None or request.cancelled
        request.told(
            Piece(
                new,
                [] if is_end else choices[-1:],
                self.version,
                self.settled,
                self.outcomes[row],
                "stop" if text.stopped else finish,
            )
        )
