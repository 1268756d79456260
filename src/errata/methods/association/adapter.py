"""Adapter: train a bottleneck behind the feed-forward network, h + W_up s(W_down h), on the edits.

Houlsby et al., arXiv 1902.00751, put one behind attention and one behind the feed-forward network
of every block; Pfeiffer et al., arXiv 2005.00247, find the second enough. Only that one is here,
behind the value matrix W_out, which every family has. Defaults are those of the `adapters` library
(ReLU, a sixteenth of the hidden size, no layer norm), except that W_up begins at zero, so that an
untrained adapter changes nothing. PEFT has no adapter of this kind. One set is trained edit after
edit, with the loss of `solvers/adapters.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from errata.config import NonNegativeFloat, PositiveInt
from errata.methods.adapter_method import ValueMatrixMethod
from errata.patches import Adapters
from errata.patches.adapter import bottlenecks
from errata.solvers.adapters import AdapterTrainerConfig


@dataclass(frozen=True)
class AdapterConfig(AdapterTrainerConfig):
    """Settings of the adapter.

    Attributes:
        layer: the one block that gets one; None: every block.
        reduction: hidden size over the width of the bottleneck.
        activation: s.
    """

    method: ClassVar[str] = "adapter"

    lr: NonNegativeFloat = 1e-3
    reduction: PositiveInt = 16
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"


class Adapter(ValueMatrixMethod):
    """Bottleneck adapters behind the feed-forward networks, one set for all edits."""

    config_class = AdapterConfig
    paper = "arXiv 1902.00751"
    config: AdapterConfig

    def begin(self) -> Adapters:
        """Return adapters that change nothing yet."""
        width = max(1, self.lm.architecture.hidden_size // self.config.reduction)
        return bottlenecks(self.lm, self.paths, width, self.config.activation, self.config.seed)
