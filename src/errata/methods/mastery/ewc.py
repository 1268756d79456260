"""FT-EWC: fine-tune one value matrix on the edit, and hold what earlier edits need by elastic
weight consolidation.

Kirkpatrick et al., arXiv 1612.00796, as GRACE's comparison has it (arXiv 2211.11031), which WISE's
tables reuse: L = NLL(y | x) + `strength` * sum_j F_j (W_j - W*_j)^2, W* the matrix before the edit,
F the mean squared gradient of the NLL over the last `memory` edits (the empirical Fisher
information), until every token of the target is the model's choice.

What departs from the published code: F is the mean over the edits there are, and W* the matrix
itself (there both are sums divided by ten, so W* shrinks towards nothing while the history is
short); and the end of the answer is learned too. Nothing here knows of text that is not an edit:
locality is lost, which is this method's known shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, check_range
from errata.edit import Edit
from errata.lm import LM
from errata.lm.tail import AnswerTail
from errata.methods.weight_method import WeightMethod


@dataclass(frozen=True)
class EwcConfig(MethodConfig):
    """Settings of FT-EWC; the defaults are those of GRACE's comparison.

    Attributes:
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        strength: lambda, the weight of the penalty.
        memory: so many of the latest edits make the Fisher information.
    """

    method: ClassVar[str] = "ewc"

    steps: int = 100
    lr: float = 1e-2
    strength: float = 0.1
    memory: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "memory"):
            check_range(name, getattr(self, name), 1, math.inf)
        for name in ("lr", "strength"):
            check_range(name, getattr(self, name), 0, math.inf)


class Ewc(WeightMethod):
    """FT-EWC on one model, one edit after another."""

    config_class = EwcConfig
    paper = "arXiv 1612.00796"
    config: EwcConfig

    def __init__(self, config: EwcConfig, lm: LM) -> None:
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        self.path = lm.architecture.value_path(self.layer)
        super().__init__(config, lm, [self.path])

    def fisher(self, delta: Tensor) -> Tensor:
        """The empirical Fisher information (d_out, d_in) of the latest edits, at W + delta; zero
        before the first edit.
        """
        total = torch.zeros_like(delta)
        latest = self._edits[-self.config.memory :]
        for edit in latest:
            at = delta.clone().requires_grad_()
            answer = self._answer(edit)
            (gradient,) = torch.autograd.grad(F.cross_entropy(answer.logits(at), answer.labels), at)
            total += gradient.square()
        return total / max(1, len(latest))

    def learn(self, edits: Sequence[Edit]) -> None:
        """Adam on loss and penalty."""
        (edit,), before = edits, self.patch.deltas[self.path]
        fisher, answer = self.fisher(before), self._answer(edit)
        delta = before.clone().requires_grad_()
        adam = torch.optim.Adam([delta], lr=self.config.lr)
        for _ in range(self.config.steps):
            logits = answer.logits(delta)
            if bool((logits.argmax(-1) == answer.labels).all()):
                break
            penalty = self.config.strength * (fisher * (delta - before).square()).sum()
            adam.zero_grad()
            (F.cross_entropy(logits, answer.labels) + penalty).backward()  # type: ignore[no-untyped-call]
            adam.step()
        self.patch.deltas[self.path] = delta.detach()

    def _answer(self, edit: Edit) -> AnswerTail:
        return AnswerTail(
            self.lm,
            self.layer,
            edit.prompt,
            edit.target,
            self.lm.ending_of(edit.prompt, edit.target),
        )
