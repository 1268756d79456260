"""LocFT-BF: fine-tune one late value matrix on all edits together, epoch after epoch.

Yang et al., "Fine-tuning Done Right in Model Editing", ICLR 2026, arXiv 2509.22072. Fine-tuning as
the editing literature has it (see `ft.py`) takes one edit to convergence before the next, and each
undoes the ones before. Here every epoch goes through all edits in drawn mini-batches: Adam on the
mean over a batch's edits of the mean NLL of the answer and its end token; a batch whose loss is
below `stop_loss` makes no step, and training stops when an epoch's mean loss is.

The edits must be known together, so each call trains the whole ledger anew from the base model: in
how many calls they came makes no difference, and undo is exact. One large write is cheapest.

What departs from the published code: an epoch of few edits is cut into batches of at most a tenth
of the ledger (there are 3,000 edits and batches of 100, so 750 steps; ten edits in one batch would
get 25); batches are drawn once, their order in each epoch, so that what lies below the matrix is
computed once; the end of an answer is the one that the model itself would write; and the default
layer is the one published for Llama-3-8B (22 of 32), at other depths the same share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.tail import Tail
from errata.methods.weight_method import WeightMethod

KEPT_KEYS = 2**24
"""Numbers in the keys of all batches, up to which what lies below the matrix is kept for the next
epoch; beyond, it is computed again.
"""


@dataclass(frozen=True)
class LocFtConfig(MethodConfig):
    """Settings of LocFT-BF; the defaults are those published for Llama-3-8B.

    Attributes:
        layer: the block whose value matrix is trained; None: eleven sixteenths of the way up.
        epochs: how often training goes through all edits, at most.
        batch: edits of a mini-batch, at most.
        lr: Adam's learning rate.
        stop_loss: a batch, and an epoch, below this has learned enough.
    """

    method: ClassVar[str] = "locft-bf"

    epochs: PositiveInt = 25
    batch: PositiveInt = 100
    lr: NonNegativeFloat = 5e-4
    stop_loss: NonNegativeFloat = 1e-2


class LocFt(WeightMethod):
    """Fine-tunes one late value matrix on all edits together, in mini-batches (LocFT-BF)."""

    config_class = LocFtConfig
    paper = "arXiv 2509.22072"
    config: LocFtConfig

    def __init__(self, config: LocFtConfig, lm: LM) -> None:
        depth = lm.architecture.n_layers
        default = max(0, min(depth * 11 // 16, depth - 2))
        self.layer = default if config.layer is None else config.layer
        self.path = lm.architecture.value_path(self.layer)
        super().__init__(config, lm, [self.path], turn=None)

    def learn(self, edits: Sequence[Edit]) -> None:
        """Minimise the edits' mean loss by Adam, epoch after epoch, from the base model."""
        config = self.config
        endings = self.lm.endings([(edit.prompt, edit.target) for edit in edits])
        rows = [
            self.lm.encode(edit.prompt, edit.target, ending)
            for edit, ending in zip(edits, endings, strict=True)
        ]
        generator = torch.Generator().manual_seed(config.seed)
        order = torch.randperm(len(rows), generator=generator).tolist()
        size = batch_size(len(rows), config.batch)
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        batches = [_MiniBatch(self.lm, self.layer, [rows[i] for i in part]) for part in parts]
        tokens = sum(batch.tokens for batch in batches)
        keep = tokens * self.lm.architecture.d_in <= KEPT_KEYS
        delta = torch.zeros_like(self.patch.deltas[self.path]).requires_grad_()
        adam = torch.optim.Adam([delta], lr=config.lr)
        for _ in range(config.epochs):
            total = 0.0
            for place in torch.randperm(len(batches), generator=generator).tolist():
                loss = batches[place].loss(delta, keep)
                total += loss.item() * len(parts[place])
                if loss.item() >= config.stop_loss:
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
            if total / len(rows) < config.stop_loss:
                break
        self.patch.deltas[self.path] = delta.detach()


class _MiniBatch:
    """Answers that are learned together; their loss is a function of the matrix's change."""

    def __init__(self, lm: LM, layer: int, rows: Sequence[Row]) -> None:
        self._lm, self._layer, self._batch = lm, layer, lm.batch(rows)
        self._tail: Tail | None = None
        mask = self._batch.target_mask | self._batch.ending_mask
        self._rows, self._columns, self._labels = self._batch.label_positions(mask)
        # the mean over the tokens of an answer, then over the answers
        self._shares = 1 / torch.bincount(self._rows, minlength=len(rows))[self._rows] / len(rows)

    @property
    def tokens(self) -> int:
        """The number of tokens, padding included."""
        return self._batch.input_ids.numel()

    def loss(self, delta: Tensor, keep: bool) -> Tensor:
        """Return the mean over answers of the mean NLL of their tokens, at W + delta.

        Args:
            delta: (d_out, d_in), fp32; gradients flow into it.
            keep: keep what lies below the matrix for the next call.
        """
        tail = self._tail or Tail(self._lm, self._layer, self._batch)
        self._tail = tail if keep else None
        values = tail.values.float() + F.linear(tail.keys.float(), delta)
        logits = tail.logits(values, self._rows, self._columns)
        labels, shares = self._labels.to(logits.device), self._shares.to(logits.device)
        return (F.cross_entropy(logits, labels, reduction="none") * shares).sum()


def batch_size(edits: int, largest: int) -> int:
    """Return the edits of a mini-batch: at most `largest`, and a tenth of all."""
    return max(1, min(largest, edits // 10))
