"""BitFit: biases, and nothing else, trained on the edits (Ben Zaken et al., arXiv 2106.10199).

The paper trains the biases that a model has. Many families have none, so here every family is given
the same ones, at the place that all of them have: one on the value matrix of every block, W k + b +
c, which is the training of b where there is a b. All that is learned is n_layers * hidden numbers,
one set for all edits, trained edit after edit with the loss of `tuning.py`.
A bias is the same for every input: it cannot tell an edit's prompt from another. What the
divergence term holds of the base model it takes from the edits, so this is a floor for methods to
be measured by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from errata.lm import LM
from errata.methods.adapter_method import AdapterMethod, AdapterMethodConfig
from errata.methods.association.bitfit.patch import biases
from errata.patches import Adapters


@dataclass(frozen=True)
class BitFitConfig(AdapterMethodConfig):
    """Settings of BitFit.

    Attributes:
        layer: the one block whose bias is trained; None: every block's.
    """

    method: ClassVar[str] = "bitfit"

    lr: float = 1e-2


class BitFit(AdapterMethod):
    """Biases on the value matrices, one set for all edits."""

    config_class = BitFitConfig
    paper = "arXiv 2106.10199"
    config: BitFitConfig

    def __init__(self, config: BitFitConfig, lm: LM) -> None:
        super().__init__(config, lm)
        layers = range(lm.architecture.n_layers) if config.layer is None else [config.layer]
        self.paths = [lm.architecture.value_path(layer) for layer in layers]

    def begin(self) -> Adapters:
        """Biases of zero."""
        return biases(self.lm, self.paths)
