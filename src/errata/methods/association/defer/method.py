"""DEFER: a gate and a small linear model beside one value matrix; where the gate opens, the small
model speaks.

The comparison of that name in GRACE (Hartvigsen et al., arXiv 2211.11031) and WISE (arXiv
2405.14768). With h the value matrix's input at the last token of the prompt, g(h) = sigmoid(w^T h +
b) and o(h) = U h + c. While an edit is learned, the matrix says g o(h) + (1 - g) v at every token,
v being its own output, and Adam lowers the NLL of the target; in use it says o(h) at every token if
g(h) >= `threshold`, and v if not. All edits share g and o, and each is learned for itself.

What departs from the published code: the gate looks at the last token of the prompt, once, and
holds to it for the whole answer (there, while generating, at whatever token came last); and the end
of the answer is learned too. No text that is not an edit is ever seen, so nothing closes the gate
to others: locality falls as edits come, and earlier edits are forgotten, which is this method's
known shape.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, check_range
from errata.edit import Edit
from errata.lm import LM
from errata.lm.tail import Tail
from errata.lm.weights import read_weight
from errata.methods.association.defer.patch import Deferral, Speaker
from errata.methods.base import Method, Progress, no_progress
from errata.storage import state


@dataclass(frozen=True)
class DeferConfig(MethodConfig):
    """Settings of DEFER; the defaults are those of GRACE's comparison (WISE's has a learning rate
    of 7e-5).

    Attributes:
        steps: Adam steps per edit.
        lr: Adam's learning rate.
        threshold: the gate's value from which on the small model speaks.
    """

    method: ClassVar[str] = "defer"

    steps: int = 100
    lr: float = 1e-1
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("steps", self.steps, 1, math.inf)
        check_range("lr", self.lr, 0, math.inf)
        check_range("threshold", self.threshold, 0, 1)


class Defer(Method):
    """DEFER on one model, one edit after another."""

    config_class = DeferConfig
    phase = "association"
    undo_is = "exact, by writing the whole ledger anew"
    paper = "arXiv 2211.11031"
    config: DeferConfig

    def __init__(self, config: DeferConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        self._patch = Deferral(lm.architecture.value_path(self.layer), config.threshold)

    @property
    def patch(self) -> Deferral:
        """The gate and the small model; nobody to defer to before the first edit."""
        return self._patch

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self._patch.speaker = None

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        for edit in edits:
            self.learn(edit)
            self._edits.append(edit)
            progress(1)

    def learn(self, edit: Edit) -> None:
        """Adam on the edit's loss, the gate half open."""
        speaker = copy.deepcopy(self._patch.speaker) or self.newborn()
        lesson = Lesson(self.lm, self.layer, edit)
        adam = torch.optim.Adam(speaker.requires_grad_().parameters(), lr=self.config.lr)
        for _ in range(self.config.steps):
            adam.zero_grad()
            lesson.loss(speaker).backward()  # type: ignore[no-untyped-call]
            adam.step()
        speaker.zero_grad()
        self._patch.speaker = speaker.requires_grad_(False)

    def newborn(self) -> Speaker:
        """A gate and a small model that have learned nothing: they follow from the seed."""
        where = read_weight(self.lm.architecture.value_module(self.lm.model, self.layer)).device
        return Speaker(self.lm.architecture.d_in, self.lm.architecture.d_out, self.config.seed).to(
            where
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The gate's and the small model's weights and biases; nothing before the first edit."""
        speaker = self._patch.speaker
        return (
            {name: tensor.cpu() for name, tensor in speaker.state_dict().items()} if speaker else {}
        ), {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        self.clear()
        if edits:
            speaker = self.newborn()
            state.copy_into(speaker.state_dict(), tensors)
            self._patch.speaker = speaker.requires_grad_(False)
        self._edits = list(edits)


class Lesson:
    """One edit as a speaker learns it.

    Args:
        lm: the base model, without patches.
        layer: the block whose value matrix is spoken for.
    """

    def __init__(self, lm: LM, layer: int, edit: Edit) -> None:
        row = lm.encode(edit.prompt, edit.target, lm.ending_of(edit.prompt, edit.target))
        batch = lm.batch([row])
        self._tail = Tail(lm, layer, batch)
        self._query = self._tail.keys[:, row.prompt_length - 1]
        self._rows, self._columns, self._labels = batch.label_positions(
            batch.target_mask | batch.ending_mask
        )

    def loss(self, speaker: Speaker) -> Tensor:
        """NLL of the answer, (), while the value matrix says g o(h) + (1 - g) v at every token."""
        gate, value = speaker(self._query)[:, None].split([1, self._tail.values.shape[-1]], -1)
        logits = self._tail.logits(
            gate * value + (1 - gate) * self._tail.values.to(value), self._rows, self._columns
        )
        return F.cross_entropy(logits, self._labels.to(logits.device))
