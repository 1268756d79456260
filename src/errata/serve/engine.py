"""`Engine`: a model that answers many requests at a time, and is changed between them.

Requests that wait are answered together, each by settings of its own; the base model stands beside
the edited one. A few batches run side by side, so that a long answer does not hold up short ones. A
change waits for the batches that run, and those that come after it wait for the change: each answer
is given by one version of the model, whose number it carries.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from errata.errors import ErrataError, PromptTooLongError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.model import EditModel
from errata.model.lock import SharedLock
from errata.patches.outcome import Outcome, outcomes_told_to
from errata.serve.sampling import RowChoosers, Sampling, TokenChoice, TokenChooser
from errata.serve.text import GrowingText

log = logging.getLogger(__name__)


class StoppingError(ErrataError, RuntimeError):
    """The engine is closed, or is closing: no request is taken any more."""


@dataclass
class Piece:
    """What is new of an answer.

    Attributes:
        text: characters since the last piece.
        choices: the tokens since the last piece.
        version: of the model that answers; the same in all pieces.
        outcome: which edits answer; None where the method does not tell.
        finish: in the last piece, `stop` or `length`.
        error: in place of an answer, what went wrong.
    """

    text: str = ""
    choices: list[TokenChoice] = field(default_factory=list)
    version: int = 0
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


class Engine:
    """Answers requests in batches, and changes the model between them.

    Args:
        model: the edited model; nobody else may change it.
        version: the number of its version.
        batch: requests answered together, at most.
        lanes: batches that run side by side.
    """

    def __init__(self, model: EditModel, version: int = 0, batch: int = 16, lanes: int = 2) -> None:
        self.model, self.version = model, version
        self.batch = batch
        self.base = _beside(model)
        self._lock = SharedLock()
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._lane, name=f"errata-lane-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def lm(self) -> LM:
        """The base model with its tokenizer."""
        return self.model.lm

    @property
    def vocabulary(self) -> int:
        """The number of tokens that have a logit."""
        return int(self.model.base.get_output_embeddings().weight.shape[0])

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return self._running

    def room(self, ids: Sequence[int]) -> int | None:
        """Return how many tokens an answer to a prompt may have; None where nothing limits it.

        Raises:
            PromptTooLongError: it leaves no room for an answer.
        """
        limit = self.lm.context_length
        if not limit:
            return None
        if len(ids) >= limit:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, and the model's context has {limit}: "
                "there is no room for an answer; give a shorter one."
            )
        return limit - len(ids)

    def submit(self, request: Request) -> None:
        """Put a request behind those that wait.

        Raises:
            StoppingError: the engine is closed.
        """
        with self._changed:
            if self._closed:
                raise StoppingError("the server is stopping.")
            self._waiting.append(request)
            self._changed.notify()

    def change(self, change: Callable[[EditModel], int]) -> int:
        """Change the model while nothing is answered; return its new version.

        Args:
            change: changes it and returns the number of the version; where it raises, the version
                stays what it was.
        """
        with self._lock.exclusive("change"):
            self.version = change(self.model)
            return self.version

    def close(self) -> None:
        """Answer what is running, refuse what waits, and end the threads."""
        with self._changed:
            self._closed = True
            refused, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for request in refused:
            request.told(Piece(error=StoppingError("the server is stopping.")))
        for thread in self._threads:
            thread.join()

    # the lanes

    def _lane(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            except Exception as error:
                log.exception("a batch of %d requests failed", len(batch))
                for request in batch:
                    request.told(Piece(error=error))
            finally:
                with self._changed:
                    self._running -= len(batch)

    def _next_batch(self) -> list[Request]:
        """Wait for requests; return those for the same model as the first, [] when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if not self._waiting:
                return []
            edited = self._waiting[0].edited
            taken, left = list[Request](), deque[Request]()
            for request in self._waiting:
                fits = request.edited == edited and len(taken) < self.batch
                (taken if fits else left).append(request)
            self._waiting = left
            self._running += len(taken)
            return taken

    def _weights_of_base(self) -> AbstractContextManager[None]:
        """Hold the weights at the base model's where edits change them."""
        in_weights = not self.model.method.patch.reads_prompts
        return self.model.disable_edits() if in_weights else nullcontext()

    @torch.no_grad()
    def _answer(self, requests: Sequence[Request]) -> None:
        batch = self.lm.batch([Row(request.ids, len(request.ids)) for request in requests])
        answers = _Answers(self.lm, requests)
        longest = max(request.sampling.max_tokens for request in requests)
        settings = copy.deepcopy(self.lm.greedy_model().generation_config)
        settings.max_new_tokens = longest
        options: dict[str, Any] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "generation_config": settings,
            "logits_processor": LogitsProcessorList([answers.processor]),
            "stopping_criteria": StoppingCriteriaList([answers]),
        }
        with self._lock.shared("answer"):
            answers.version = self.version
            if requests[0].edited and self.model.edits:
                with outcomes_told_to(answers.decided):
                    self.model.generate(**options)
            else:
                answers.outcomes = [Outcome("main")] * len(requests)
                with self._weights_of_base():
                    self.base.generate(**options)


class _Answers(StoppingCriteria):  # type: ignore[misc]
    """The answers of a batch while they grow; tells each row what is new, and when to stop."""

    def __init__(self, lm: LM, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.version = 0
        self.outcomes: Sequence[Outcome | None] = [None] * len(requests)
        self._ends = lm.end_ids
        self._choosers = [TokenChooser(request.sampling) for request in requests]
        self._ended = [False] * len(requests)

        def decode(ids: list[int]) -> str:
            return str(lm.tokenizer.decode(ids, skip_special_tokens=True))

        self._texts = [GrowingText(decode, request.sampling.stops) for request in requests]
        self.processor = RowChoosers(self._choosers, self._ended)

    def decided(self, outcomes: Sequence[Outcome]) -> None:
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
                self.outcomes[row],
                "stop" if text.stopped else finish,
            )
        )


def _beside(model: EditModel) -> PreTrainedModel:
    """Return the base model as a module of its own, which shares the edited one's parameters."""
    with model.disable_edits():
        shared = {
            id(tensor): tensor for tensor in [*model.base.parameters(), *model.base.buffers()]
        }
        return copy.deepcopy(model.base, shared)
