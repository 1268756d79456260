"""`WeightDelta`: a change added into one value matrix. It decides nothing: every input sees it."""

from __future__ import annotations

from torch import Tensor

from errata.architecture import add_to_weight, read_weight
from errata.lm import LM
from errata.patches.base import Patch


class WeightDelta(Patch):
    """Add `delta` (d_out, d_in) to the value matrix of `layer`.

    The matrix as it was is kept while the patch is installed, since W + D - D need not be W in floating point.
    """

    def __init__(self, layer: int, delta: Tensor) -> None:
        self.layer = layer
        self.delta = delta
        self._before: Tensor | None = None

    def _attach(self, lm: LM) -> None:
        module = lm.architecture.value_module(lm.model, self.layer)
        self._before = read_weight(module).clone()
        add_to_weight(module, self.delta)

    def _detach(self, lm: LM) -> None:
        module = lm.architecture.value_module(lm.model, self.layer)
        if self._before is not None:
            read_weight(module).copy_(self._before)
        self._before = None
