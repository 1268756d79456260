"""FT-L and FT-M: fine-tune one value matrix on the edit, keep it near where it was. The baseline of
the field.

FT-L: Zhu et al., arXiv 2012.00363, as ROME's comparison has it (arXiv 2202.05262): Adam on the
target's loss, then projection onto |W - W0| <= `norm_clamp`. Its `prompt_last` objective scores
every target token at the last token of the prompt, which is wrong for targets of more than one
token; `target_new` (FT-M) is the ordinary loss, and the fairer baseline. The end of the answer is
learned with `target_new` only, since `prompt_last` has no place for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from errata.config import MethodConfig, check_choice, check_range
from errata.edit import Edit
from errata.lm import LM
from errata.lm.tail import AnswerTail
from errata.methods.weight_method import WeightMethod


@dataclass(frozen=True)
class FineTuningConfig(MethodConfig):
    """Settings of FT-L (`objective="prompt_last"`) and FT-M (`"target_new"`).

    Attributes:
        objective: which positions predict the target, see the module's docstring.
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate (the WISE paper's comparison: 5e-4, 50 steps).
        norm_clamp: largest change of an entry over the whole stream; None for none.
        stop_loss: an edit is learned when its loss is below.
    """

    method: ClassVar[str] = "ft"

    objective: Literal["prompt_last", "target_new"] = "prompt_last"
    steps: int = 50
    lr: float = 5e-4
    norm_clamp: float | None = None
    stop_loss: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective", self.objective, ("prompt_last", "target_new"))
        check_range("steps", self.steps, 1, math.inf)
        check_range("lr", self.lr, 0, math.inf)
        if self.norm_clamp is not None:
            check_range("norm_clamp", self.norm_clamp, 0, math.inf)


class FineTuning(WeightMethod):
    """FT-L / FT-M on one model, one edit after another."""

    config_class = FineTuningConfig
    paper = "arXiv 2012.00363"
    variants = MappingProxyType({"ft-m": {"objective": "target_new"}})
    config: FineTuningConfig

    def __init__(self, config: FineTuningConfig, lm: LM) -> None:
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        self.path = lm.architecture.value_path(self.layer)
        super().__init__(config, lm, [self.path])

    def learn(self, edits: Sequence[Edit]) -> None:
        """Adam on the edit's loss, with projection."""
        (edit,), config = edits, self.config
        whole = config.objective == "target_new"
        ending = self.lm.ending_of(edit.prompt, edit.target) if whole else None
        answer = AnswerTail(
            self.lm, self.layer, edit.prompt, edit.target, ending, at_prompt=not whole
        )
        delta = self.patch.deltas[self.path].clone().requires_grad_()
        adam = torch.optim.Adam([delta], lr=config.lr)
        for _ in range(config.steps):
            loss = F.cross_entropy(answer.logits(delta), answer.labels)
            if loss.item() < config.stop_loss:
                break
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            if config.norm_clamp is not None:
                with torch.no_grad():
                    delta.clamp_(-config.norm_clamp, config.norm_clamp)
        self.patch.deltas[self.path] = delta.detach()
