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
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.model import EditModel
from errata.model.lock import SharedLock
from errata.patches.outcome import Outcome, outcomes_told_to
from errata.serve.requests import Answers, Piece, Request, StoppingError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settled:
    """A second model, which answers in the place of the edited one while its version is current.

    Attributes:
        model: has some of the version's edits in its weights, and the others beside them.
        version: whose edits it has.
        edit_ids: those in its weights.
    """

    model: EditModel
    version: int
    edit_ids: tuple[str, ...]


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
        self.settled: Settled | None = None
        """Who answers in the place of the edited model; gone with its version."""
        self.changes = 0
        """Odd while the model is changed, or something is tried on it; it never comes back."""
        self._last_asked = time.monotonic()
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

    @property
    def idle_seconds(self) -> float:
        """For how long nothing has been asked and nothing been changed."""
        if self._waiting or self._running:
            return 0.0
        return time.monotonic() - self._last_asked

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
            self._last_asked = time.monotonic()
            self._changed.notify()

    def change(self, change: Callable[[EditModel], int]) -> int:
        """Change the model while nothing is answered; return its new version.

        Args:
            change: changes it and returns the number of the version; where it raises, the version
                stays what it was.
        """
        with self._lock.exclusive("change"):
            self.changes += 1
            try:
                before, self.version = self.version, change(self.model)
                if self.version != before:
                    self.settled = None
            finally:
                self.changes += 1
                self._last_asked = time.monotonic()
            return self.version

    def settle(self, settled: Settled, changes: int) -> bool:
        """Let another model answer; return False where anything has changed since so many changes.

        Args:
            settled: made of the edits of this version.
            changes: see there, when they were looked at.
        """
        with self._lock.exclusive("settle"):
            if changes != self.changes:
                return False
            self.settled = settled
            return True

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
                    self._last_asked = time.monotonic()

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
        answers = Answers(self.lm, requests)
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
        edited = requests[0].edited
        with self._lock.shared("answer"):
            answers.version = self.version
            model = self.model
            if edited and self.settled is not None:
                model, answers.settled = self.settled.model, len(self.settled.edit_ids)
            if not (edited and model.edits):
                answers.outcomes = [Outcome("main")] * len(requests)
            if edited and (model.edits or answers.settled):
                with outcomes_told_to(answers.decided):
                    model.generate(**options)
            else:
                with self._weights_of_base():
                    self.base.generate(**options)


def _beside(model: EditModel) -> PreTrainedModel:
    """Return the base model as a module of its own, which shares the edited one's parameters."""
    with model.disable_edits():
        shared = {
            id(tensor): tensor for tensor in [*model.base.parameters(), *model.base.buffers()]
        }
        return copy.deepcopy(model.base, shared)
