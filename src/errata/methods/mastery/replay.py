"""FT with replay: fine-tune one value matrix on each edit, and at times on earlier edits again.

FT+Retrain in GRACE's comparison (Hartvigsen et al., arXiv 2211.11031): Adam on the edit's loss
until the model's choice is the right one at every token of the target; before each fiftieth edit,
Adam on the history, that edit included, one step per edit, five epochs.

What departs from the published code: `memory` has an effect (there nothing reads the setting: the
history is always whole), and None is the whole history; and the end of the answer is learned too.
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
from errata.methods.fine_tuning_method import FineTuningMethod


@dataclass(frozen=True)
class ReplayConfig(MethodConfig):
    """Settings of FT with replay; the defaults are those of GRACE's comparison.

    Attributes:
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate, for edits and replays.
        every: edits from one replay to the next.
        epochs: how often a replay goes through the history.
        memory: the number of latest edits that are the history; None: all.
    """

    method: ClassVar[str] = "replay"

    steps: PositiveInt = 100
    lr: NonNegativeFloat = 1e-2
    every: PositiveInt = 50
    epochs: PositiveInt = 5
    memory: PositiveInt | None = None


class Replay(FineTuningMethod):
    """Fine-tunes one value matrix, and replays earlier edits from time to time."""

    config_class = ReplayConfig
    paper = "arXiv 2211.11031"
    config: ReplayConfig

    def history(self, edit: Edit) -> list[Edit]:
        """Return the edits to replay before learning `edit`, itself last; mostly none."""
        edits = [*self._edits, edit]
        if len(edits) % self.config.every:
            return []
        return edits[-(self.config.memory or len(edits)) :]

    def learn(self, edits: Sequence[Edit]) -> None:
        """Replay when it is time, then minimise the edit's loss by Adam."""
        (edit,) = edits
        delta = self.patch.deltas[self.path].clone().requires_grad_()
        if history := [self.answer(earlier) for earlier in self.history(edit)]:
            adam = torch.optim.Adam([delta], lr=self.config.lr)
            for answer in history * self.config.epochs:
                _step(adam, answer.logits(delta), answer.labels)
        answer = self.answer(edit)
        adam = torch.optim.Adam([delta], lr=self.config.lr)
        for _ in range(self.config.steps):
            logits = answer.logits(delta)
            if bool((logits.argmax(-1) == answer.labels).all()):
                break
            _step(adam, logits, answer.labels)
        self.patch.deltas[self.path] = delta.detach()


def _step(adam: torch.optim.Adam, logits: Tensor, labels: Tensor) -> None:
    adam.zero_grad()
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    adam.step()
