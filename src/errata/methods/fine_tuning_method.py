"""`FineTuningMethod`: the base of methods that fine-tune one value matrix, edit after edit."""

from __future__ import annotations

from errata.config import MethodConfig
from errata.edit import Edit
from errata.lm import LM
from errata.lm.tail import AnswerTail
from errata.methods.weight_method import WeightMethod


class FineTuningMethod(WeightMethod):
    """A method that fine-tunes the value matrix of one block on one edit after another.

    Args:
        config: the method's settings.
        lm: the base model without patches.

    Attributes:
        layer: the block; the architecture's default layer unless the settings name one.
        path: the full name of its value matrix.
    """

    def __init__(self, config: MethodConfig, lm: LM) -> None:
        self.layer = lm.architecture.default_layer() if config.layer is None else config.layer
        self.path = lm.architecture.value_path(self.layer)
        super().__init__(config, lm, [self.path])

    def answer(self, edit: Edit) -> AnswerTail:
        """Encode the edit's answer, whose logits are a function of the matrix's change."""
        ending = self.lm.ending_of(edit.prompt, edit.target)
        return AnswerTail(self.lm, self.layer, edit.prompt, edit.target, ending)
