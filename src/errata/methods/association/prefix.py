"""Prefix tuning: keys and values of tokens that were never read, at every layer (Li and Liang,
arXiv 2101.00190).

One prefix is trained edit after edit, with the loss of `tuning.py`. It begins as the keys and
values that the model makes of a text of its own making (the paper: real words' activations, which
it found to be best), and is trained itself: the paper's reparametrisation by a network was for a
prefix drawn at random. Positions: see `patches/virtual_tokens.py`; to a prefix they mean nothing,
for its keys stand in the cache as they are, with their rotation if the model has one.
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
class PrefixConfig(AdapterMethodConfig):
    """Settings of prefix tuning.

    Attributes:
        tokens: length of the prefix.
    """

    method: ClassVar[str] = "prefix-tuning"

    tokens: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("tokens", self.tokens, 1, math.inf)


class PrefixTuning(AdapterMethod):
    """Trained keys and values in front of every text at every layer, one prefix for all edits."""

    config_class = PrefixConfig
    paper = "arXiv 2101.00190"
    config: PrefixConfig

    def __init__(self, config: PrefixConfig, lm: LM) -> None:
        super().__init__(config, lm, room=room_for(lm, config.tokens))

    def begin(self) -> VirtualTokens:
        """What the model remembers of real tokens."""
        return VirtualTokens(self.tutor.embeddings(self.config.tokens)).with_memory(self.lm)
