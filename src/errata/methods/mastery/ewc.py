"""FT-EWC: fine-tune one value matrix, with elastic weight consolidation for earlier edits.

Kirkpatrick et al., arXiv 1612.00796, as in GRACE's comparison (arXiv 2211.11031), which WISE's
tables reuse: L = NLL(y | x) + `strength` * sum_j F_j (W_j - W*_j)^2, with W* the matrix before the
edit and F the mean squared gradient of the NLL over the last `memory` edits (the empirical Fisher
information), until the model's choice is the right one at every token of the target.

What departs from the published code: F is the mean over the edits there are, and W* the matrix
itself (there both are sums divided by ten, so W* shrinks towards zero while the history is short);
and the end of the answer is learned too. Nothing protects text that is not an edit, so locality is
lost, as is known of this method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.methods.fine_tuning_method import FineTuningMethod
from errata.solvers.importance import distance, importance


@dataclass(frozen=True)
class EwcConfig(MethodConfig):
    """Settings of FT-EWC; the defaults are those of GRACE's comparison.

    Attributes:
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        strength: lambda, the weight of the penalty.
        memory: the number of latest edits that the Fisher information is taken over.
    """

    method: ClassVar[str] = "ewc"

    steps: PositiveInt = 100
    lr: NonNegativeFloat = 1e-2
    strength: NonNegativeFloat = 0.1
    memory: PositiveInt = 10


class Ewc(FineTuningMethod):
    """Fine-tunes one value matrix, and penalises changes where earlier edits are sensitive."""

    config_class = EwcConfig
    paper = "arXiv 1612.00796"
    config: EwcConfig

    def fisher(self, delta: Tensor) -> Tensor:
        """Return the latest edits' empirical Fisher information (d_out, d_in) at W + delta.

        It is zero before the first edit.
        """
        point = delta.clone().requires_grad_()

        def loss(edit: Edit) -> Tensor:
            answer = self.answer(edit)
            return F.cross_entropy(answer.logits(point), answer.labels)

        latest = self._edits[-self.config.memory :]
        (found,) = importance((partial(loss, edit) for edit in latest), [point])
        return found

    def learn(self, edits: Sequence[Edit]) -> None:
        """Minimise loss and penalty by Adam."""
        (edit,), before = edits, self.patch.deltas[self.path]
        fisher, answer = self.fisher(before), self.answer(edit)
        delta = before.clone().requires_grad_()
        adam = torch.optim.Adam([delta], lr=self.config.lr)
        for _ in range(self.config.steps):
            logits = answer.logits(delta)
            if bool((logits.argmax(-1) == answer.labels).all()):
                break
            penalty = self.config.strength * distance([fisher], [delta], [before])
            adam.zero_grad()
            (F.cross_entropy(logits, answer.labels) + penalty).backward()  # type: ignore[no-untyped-call]
            adam.step()
        self.patch.deltas[self.path] = delta.detach()
