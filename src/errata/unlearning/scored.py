"""`Scored`: what a model makes of a batch of passages; `Side`: before and while it unlearns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.lm import LM
from errata.lm.encoding import Row, prompt_tokens
from errata.lm.hooks import capture_output
from errata.unlearning.trained import Trained


@dataclass(frozen=True)
class Scored:
    """Predictions of the tokens of answers and documents.

    Attributes:
        logits: (n, vocabulary) in fp32, where a token is predicted.
        labels: (n,), the tokens.
        rows: (n,), the passages that they are of.
        count: of passages.
    """

    logits: Tensor
    labels: Tensor
    rows: Tensor
    count: int

    @cached_property
    def log_probs(self) -> Tensor:
        """(n,), of the tokens."""
        return -F.cross_entropy(self.logits, self.labels, reduction="none")

    @cached_property
    def nll(self) -> Tensor:
        """(count,), the summed negative log-probability of each passage, in nats."""
        zeros = self.logits.new_zeros(self.count)
        return zeros.index_add(0, self.rows, -self.log_probs)

    @cached_property
    def lengths(self) -> Tensor:
        """(count,), the tokens of each passage."""
        return torch.bincount(self.rows, minlength=self.count)


class Side:
    """A batch of passages, as the model sees them now, and as it did before.

    Args:
        lm: the model.
        trained: what is trained of it, which can be set back for a while.
        rows: the passages' tokens.
    """

    def __init__(self, lm: LM, trained: Trained, rows: Sequence[Row]) -> None:
        self.lm, self.trained, self.rows = lm, trained, rows
        self.batch = lm.batch(rows)
        self._mask = self.batch.target_mask | self.batch.ending_mask

    @cached_property
    def now(self) -> Scored:
        """What the model makes of them, with gradients."""
        return scored(self.lm, self.rows)

    @cached_property
    def before(self) -> Scored:
        """What it made of them before it was trained."""
        with torch.no_grad(), self.trained.set_back():
            return scored(self.lm, self.rows)

    def states(self, layer: int) -> Tensor:
        """Return what a block says at the passages' own tokens, (n, hidden), with gradients."""
        block = self.lm.architecture.block(self.lm.model, layer)
        with capture_output(block, detach=False) as captured, prompt_tokens(self.batch.prompt_mask):
            self.lm.run(self.batch, keep=1, use_cache=False)
        return captured[0][self._mask].float()

    def states_before(self, layer: int) -> Tensor:
        """Return what the block said before the model was trained."""
        with torch.no_grad(), self.trained.set_back():
            return self.states(layer)


def scored(lm: LM, rows: Sequence[Row]) -> Scored:
    """Return what a model makes of passages, given by their tokens."""
    batch = lm.batch(rows)
    places, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
    with prompt_tokens(batch.prompt_mask):
        logits = lm.run(batch, use_cache=False).logits
    return Scored(logits[places, columns].float(), labels, places, len(rows))
