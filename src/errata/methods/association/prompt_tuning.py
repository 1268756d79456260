"""Prompt tuning: embeddings of tokens that no vocabulary has, in front of every text (Lester et
al., arXiv 2104.08691).

One set of tokens is trained edit after edit, with the loss of `tuning.py`. They begin as the tokens
of a text of the model's own making (the paper: tokens of the vocabulary), so that the model starts
from something it knows. The saved tensor is what PEFT saves; the positions of the tokens are told
in `patches/virtual_tokens.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from errata.config import check_range
from errata.lm import LM
from errata.methods.adapter_method import AdapterMethod, AdapterMethodConfig
from errata.patches import VirtualTokens
from errata.patches.virtual_tokens import room_for


@dataclass(frozen=True)
class PromptTuningConfig(AdapterMethodConfig):
    """Settings of prompt tuning.

    Attributes:
        tokens: virtual tokens, n.
    """

    method: ClassVar[str] = "prompt-tuning"

    tokens: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("tokens", self.tokens, 1, math.inf)


class PromptTuning(AdapterMethod):
    """Trained embeddings in front of every text, one set for all edits."""

    config_class = PromptTuningConfig
    paper = "arXiv 2104.08691"
    config: PromptTuningConfig

    def __init__(self, config: PromptTuningConfig, lm: LM) -> None:
        super().__init__(config, lm, room=room_for(lm, config.tokens))

    def begin(self) -> VirtualTokens:
        """The embeddings of real tokens."""
        return VirtualTokens(self.tutor.embeddings(self.config.tokens))
