"""Prompt tuning: train embeddings of virtual tokens in front of every text (arXiv 2104.08691).

One set of tokens is trained edit after edit, with the loss of `solvers/adapters.py`. They begin as
the tokens of a self-generated text (Lester et al.: tokens of the vocabulary). The tensor is saved
as PEFT saves it; for the positions of the tokens see `patches/virtual_tokens.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from errata.config import PositiveInt
from errata.lm import LM
from errata.methods.adapter_method import AdapterMethod
from errata.patches import VirtualTokens
from errata.patches.virtual_tokens import room_for
from errata.solvers.adapters import AdapterTrainerConfig


@dataclass(frozen=True)
class PromptTuningConfig(AdapterTrainerConfig):
    """Settings of prompt tuning.

    Attributes:
        tokens: virtual tokens, n.
    """

    method: ClassVar[str] = "prompt-tuning"

    tokens: PositiveInt = 20


class PromptTuning(AdapterMethod):
    """Trained embeddings in front of every text, one set for all edits."""

    config_class = PromptTuningConfig
    shares_rows = False
    paper = "arXiv 2104.08691"
    config: PromptTuningConfig

    def __init__(self, config: PromptTuningConfig, lm: LM) -> None:
        super().__init__(config, lm, room=room_for(lm, config.tokens))

    def begin(self) -> VirtualTokens:
        """Return the embeddings of real tokens."""
        return VirtualTokens(self.trainer.embeddings(self.config.tokens))
