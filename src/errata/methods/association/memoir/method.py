"""MEMOIR: one residual memory beside a value matrix; each edit has columns of its own in it.

Wang, Qin et al., "MEMOIR: Lifelong Model Editing with Minimal Overwrite and Informed Retention for
LLMs", NeurIPS 2025, arXiv 2506.07899. The feature of a prompt is the mean of the value matrix's
inputs over its tokens, less the mean feature of background text. Its k largest coordinates,
scattered by a fixed permutation, are the columns of W_m that the edit may change (TopHash), by SGD
on the target's loss alone. A prompt whose columns overlap with a stored edit's by `overlap` or more
is answered with that edit's columns, else by the base model.

What is decided here, where the paper is silent or fits one model:

- Coordinates are ranked by magnitude: after centring, a feature far below its mean is as telling as
  one far above.
- `pool = "last"` takes the feature at the prompt's last token: in a small model, the mean reflects
  how a question is worded rather than what it asks, and rephrasings do not find their edit.
- Of masks equally near the latest counts; of two edits of one prompt the later has overwritten the
  earlier.
- The background text is self-generated, so that no corpus is needed; `columns` is the paper's share
  of d_in, and the learning rate a step in the size of the values (the paper: 1.0), unless set.
- The edit is chosen once per sequence on the prompt, padding left out; the end of the answer is
  learned too.
- Edits share columns, so an undone edit's part of W_m cannot be taken out by itself: the others are
  written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import Fraction, MethodConfig, NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.background import background_texts, value_scale
from errata.lm.tail import Tail
from errata.methods.association.memoir.patch import Pool, ResidualMemory, feature
from errata.methods.base import Method, Progress, no_progress
from errata.storage import state

BATCH = 128
"""Background texts in one pass."""


@dataclass(frozen=True)
class MemoirConfig(MethodConfig):
    """Settings of MEMOIR, with the paper's defaults.

    Attributes:
        columns: k, the columns of the memory that an edit may change; None: two sevenths (the
            paper: 4096 of 14336).
        overlap: tau, the share of an edit's columns that a prompt must have too.
        pool: what a prompt's feature is taken from: the mean over its tokens, as in the paper, or
            the last of them.
        steps: SGD steps per edit.
        lr: the learning rate, as in the paper (there 1.0); None derives it from `step_size`.
        step_size: step in value space, relative to the size of the values; used when `lr` is None.
        background: self-generated texts whose mean feature is the centre.
    """

    method: ClassVar[str] = "memoir"

    columns: int | None = None
    overlap: Fraction = 0.4
    pool: Pool = "mean"
    steps: PositiveInt = 30
    lr: NonNegativeFloat | None = None
    step_size: NonNegativeFloat = 0.1
    background: PositiveInt = 100


class Memoir(Method):
    """MEMOIR: a residual memory in which each edit has columns of its own."""

    config_class = MemoirConfig
    phase = "association"
    undo_is = "exact, by writing the other edits anew"
    paper = "arXiv 2506.07899"
    config: MemoirConfig

    def __init__(self, config: MemoirConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        width = lm.architecture.d_in
        self.columns = max(1, round(width * 2 / 7)) if config.columns is None else config.columns
        if not 1 <= self.columns <= width:
            raise ConfigError(
                f"columns is {self.columns}; the value matrix of this model has {width}: "
                f"give 1 to {width}."
            )
        order = torch.randperm(width, generator=torch.Generator().manual_seed(config.seed))
        self._patch = ResidualMemory(
            lm, self.layer, self.columns, config.overlap, order, config.pool
        )
        self._lr: float | None = None

    @property
    def patch(self) -> ResidualMemory:
        """The memory and the masks of the edits in it."""
        return self._patch

    @property
    def lr(self) -> float:
        """The learning rate; on first use it is measured, and the patch's centre with it."""
        if self._lr is None:
            self._lr = self._measure_background()
        return self._lr

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        for edit in edits:
            self._learn(edit)
            self._edits.append(edit)
            progress(1)

    def clear(self) -> None:
        """Forget all edits."""
        self._patch.clear()
        self._edits = []

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the memory (d_out, d_in) in fp32, masks, permutation, centre and learning rate."""
        lr, patch = self.lr, self._patch
        tensors = {
            "memory": patch.memory.cpu(),
            "masks": patch.index.packed().cpu(),
            "order": patch.order.cpu(),
            "centre": patch.centre.cpu(),
        }
        return tensors, {"layer": self.layer, "lr": lr}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        patch = self._patch
        state.same(values, "layer", self.layer)
        order = state.numbers(tensors, "order", len(patch.order), 0, len(patch.order) - 1)
        if len(set(order)) < len(order):
            raise ValueError("'order' has a number twice; expected a permutation")
        masks = state.tensor(tensors, "masks", (len(edits), None), "bits")
        memory = state.tensor(tensors, "memory", patch.memory.shape)
        centre = state.tensor(tensors, "centre", patch.centre.shape)
        patch.clear()
        patch.memory, patch.centre = memory.to(patch.memory), centre.to(patch.centre)
        patch.order = tensors["order"].to(patch.order)
        patch.index.add_packed(masks)
        self._lr = state.number(values, "lr", 0)
        self._edits = list(edits)

    def _learn(self, edit: Edit) -> None:
        """Train the columns of the edit's mask by SGD on the answer's loss."""
        lr, patch = self.lr, self._patch
        batch = self.lm.batch([self.encode(edit)])
        tail = Tail(self.lm, self.layer, batch)
        keys, values = tail.keys.float(), tail.values.float()
        rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        mask = patch.masks(keys, batch.prompt_mask.to(keys.device))
        (own,) = mask[0].nonzero(as_tuple=True)
        inputs, weights = keys[..., own], patch.memory[:, own].clone().requires_grad_()
        sgd = torch.optim.SGD([weights], lr=lr)
        for _ in range(self.config.steps):
            logits = tail.logits(values + F.linear(inputs, weights), rows, columns)
            sgd.zero_grad()
            loss = F.cross_entropy(logits, labels.to(logits.device))
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
        patch.memory = patch.memory.index_copy(1, own, weights.detach())
        patch.index.add(mask)

    @torch.no_grad()
    def _measure_background(self) -> float:
        """Set the centre, and return the learning rate."""
        config, lm = self.config, self.lm
        texts = background_texts(lm, config.background, seed=config.seed)
        texts = [text for text in texts if text]
        features = []
        for start in range(0, len(texts), BATCH):
            batch = lm.prompt_batch(texts[start : start + BATCH])
            keys = Tail(lm, self.layer, batch).keys
            features.append(feature(keys, batch.prompt_mask.to(keys.device), config.pool))
        self._patch.centre = torch.cat(features).mean(0)
        if config.lr is not None:
            return config.lr
        scale, share = value_scale(lm, self.layer, texts), self.columns / lm.architecture.d_in
        return config.step_size * (scale.value_norm / scale.key_norm) ** 2 / share
