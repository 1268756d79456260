"""FT with replay: fine-tune one value matrix on each edit, and go through the earlier edits again
from time to time.

FT+Retrain in GRACE's comparison (Hartvigsen et al., arXiv 2211.11031): Adam on the edit's loss
until every token of the target is the model's choice; before each fiftieth edit, Adam on the
history, that edit included, one step per edit, five times over.

What departs from the published code: `memory` is heeded (there it is a setting that nothing reads:
the history is always whole), an unset one being the whole history; and the end of the answer is
learned too.
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
class ReplayConfig(MethodConfig):
    """Settings of FT with replay; the defaults are those of GRACE's comparison.

    Attributes:
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate, for edits and replays.
        every: edits from one replay to the next.
        epochs: how often a replay goes through the history.
        memory: so many of the latest edits are the history; None: all.
    """

    method: ClassVar[str] = "replay"

    steps: int = 100
    lr: float = 1e-2
    every: int = 50
    epochs: int = 5
    memory: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "every", "epochs"):
            check_range(name, getattr(self, name), 1, math.inf)
        check_range("lr", self.lr, 0, math.inf)
        if self.memory is not None:
            check_range("memory", self.memory, 1, math.inf)


class Replay(WeightMethod):
    """FT with replay on one model, one edit after another."""

    config_class = ReplayConfig
    paper = "arXiv 2211.11031"
    config: ReplayConfig

    def __init__(self, config: ReplayConfig, lm: LM) -> None:
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        self.path = lm.architecture.value_path(self.layer)
        super().__init__(config, lm, [self.path])

    def history(self, edit: Edit) -> list[Edit]:
        """What is gone through again before `edit` is learned: the latest edits, itself the last;
        mostly nothing.
        """
        met = [*self._edits, edit]
        return [] if len(met) % self.config.every else met[-(self.config.memory or len(met)) :]

    def learn(self, edits: Sequence[Edit]) -> None:
        """Replay when it is time, then Adam on the edit's loss."""
        (edit,) = edits
        delta = self.patch.deltas[self.path].clone().requires_grad_()
        if history := [self._answer(earlier) for earlier in self.history(edit)]:
            adam = torch.optim.Adam([delta], lr=self.config.lr)
            for answer in history * self.config.epochs:
                _step(adam, answer.logits(delta), answer.labels)
        answer = self._answer(edit)
        adam = torch.optim.Adam([delta], lr=self.config.lr)
        for _ in range(self.config.steps):
            logits = answer.logits(delta)
            if bool((logits.argmax(-1) == answer.labels).all()):
                break
            _step(adam, logits, answer.labels)
        self.patch.deltas[self.path] = delta.detach()

    def _answer(self, edit: Edit) -> AnswerTail:
        return AnswerTail(
            self.lm,
            self.layer,
            edit.prompt,
            edit.target,
            self.lm.ending_of(edit.prompt, edit.target),
        )


def _step(adam: torch.optim.Adam, logits: Tensor, labels: Tensor) -> None:
    adam.zero_grad()
    F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    adam.step()
