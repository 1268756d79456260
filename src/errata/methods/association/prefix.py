"""Prefix tuning: train keys and values of virtual tokens at every layer (Li and Liang, 2101.00190).

One prefix is trained edit after edit, with the loss of `solvers/adapters.py`. It begins as the keys
and values of a self-generated text (the paper: activations of real words, which it found best) and
is trained directly: the paper's reparametrisation by a network was for a prefix drawn at random.
The prefix's keys stand in the cache as they are, with their rotation if the model has one; for the
positions of the tokens behind it see `patches/virtual_tokens.py`.
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
class PrefixConfig(AdapterTrainerConfig):
    """Settings of prefix tuning.

    Attributes:
        tokens: length of the prefix.
    """

    method: ClassVar[str] = "prefix-tuning"

    tokens: PositiveInt = 10


class PrefixTuning(AdapterMethod):
    """Trained keys and values in front of every text at every layer, one prefix for all edits."""

    config_class = PrefixConfig
    shares_rows = False
    paper = "arXiv 2101.00190"
    config: PrefixConfig

    def __init__(self, config: PrefixConfig, lm: LM) -> None:
        super().__init__(config, lm, room=room_for(lm, config.tokens))

    def begin(self) -> VirtualTokens:
        """Return the keys and values of real tokens."""
        return VirtualTokens(self.trainer.embeddings(self.config.tokens)).with_memory(self.lm)
