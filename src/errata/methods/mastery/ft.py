"""FT-L and FT-M, the field's baseline: fine-tune one value matrix within a distance of its start.

FT-L: Zhu et al., arXiv 2012.00363, as ROME's comparison has it (arXiv 2202.05262): Adam on the
target's loss, then projection onto |W - W0| <= `norm_clamp`. Its `prompt_last` objective scores
every target token at the last token of the prompt, which is wrong for targets of more than one
token; `target_new` (FT-M) is the ordinary loss, and the fairer baseline. The end of the answer is
learned with `target_new` only, since `prompt_last` has no place for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from errata.config import MethodConfig, NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.lm.tail import AnswerTail
from errata.methods.fine_tuning_method import FineTuningMethod


@dataclass(frozen=True)
class FineTuningConfig(MethodConfig):
    """Settings of FT-L (`objective="prompt_last"`) and FT-M (`"target_new"`).

    Attributes:
        objective: which positions predict the target, see the module's docstring.
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate (the WISE paper's comparison: 5e-4, 50 steps).
        norm_clamp: largest change of an entry over the whole stream; None for no limit.
        stop_loss: Adam stops when the loss is below this.
    """

    method: ClassVar[str] = "ft"

    objective: Literal["prompt_last", "target_new"] = "prompt_last"
    steps: PositiveInt = 50
    lr: NonNegativeFloat = 5e-4
    norm_clamp: NonNegativeFloat | None = None
    stop_loss: NonNegativeFloat = 1e-2


class FineTuning(FineTuningMethod):
    """Fine-tunes one value matrix on the edit (FT-L, FT-M)."""

    config_class = FineTuningConfig
    paper = "arXiv 2012.00363"
    variants = MappingProxyType({"ft-m": {"objective": "target_new"}})
    config: FineTuningConfig

    def learn(self, edits: Sequence[Edit]) -> None:
        """Minimise the edit's loss by Adam, with projection."""
        (edit,), config = edits, self.config
        answer = self.answer(edit)
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

    def answer(self, edit: Edit) -> AnswerTail:
        """Encode the edit's answer; for FT-L without its ending, at the prompt's last token."""
        if self.config.objective == "target_new":
            return super().answer(edit)
        return AnswerTail(self.lm, self.layer, edit.prompt, edit.target, at_prompt=True)
