"""Adapter: a bottleneck behind the feed-forward network, h + W_up s(W_down h), trained on the
edits.

Houlsby et al., arXiv 1902.00751, put one behind attention and one behind the feed-forward network
of every block; Pfeiffer et al., arXiv 2005.00247, find the second enough, and that one is here:
behind the value matrix W_out, which every family has at a known place. Defaults are those of the
`adapters` library (ReLU, a sixteenth of the hidden size, no layer norm), except that W_up begins at
zero, so that an untaught adapter is no adapter. PEFT has none of this kind. One adapter is trained
edit after edit, with the loss of `tuning.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from errata.config import check_choice, check_range
from errata.lm import LM
from errata.methods.adapter_method import AdapterMethod, AdapterMethodConfig
from errata.patches import Adapters
from errata.patches.adapter import bottlenecks

ACTIVATIONS = ("relu", "gelu", "silu", "tanh")


@dataclass(frozen=True)
class AdapterConfig(AdapterMethodConfig):
    """Settings of the adapter.

    Attributes:
        layer: the one block that gets one; None: every block.
        reduction: the bottleneck is this part of the hidden size wide.
        activation: s.
    """

    method: ClassVar[str] = "adapter"

    lr: float = 1e-3
    reduction: int = 16
    activation: str = "relu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("reduction", self.reduction, 1, math.inf)
        check_choice("activation", self.activation, ACTIVATIONS)


class Adapter(AdapterMethod):
    """Bottleneck adapters behind the feed-forward networks, one set for all edits."""

    config_class = AdapterConfig
    paper = "arXiv 1902.00751"
    config: AdapterConfig

    def __init__(self, config: AdapterConfig, lm: LM) -> None:
        super().__init__(config, lm)
        layers = range(lm.architecture.n_layers) if config.layer is None else [config.layer]
        self.paths = [lm.architecture.value_path(layer) for layer in layers]

    def begin(self) -> Adapters:
        """Adapters that change nothing yet."""
        width = max(1, self.lm.architecture.hidden_size // self.config.reduction)
        return bottlenecks(self.lm, self.paths, width, self.config.activation, self.config.seed)
