"""MEMIT and MEMIT-MASS: many facts at once, distributed over the value matrices of several blocks.

Meng et al., "Mass-Editing Memory in a Transformer", ICLR 2023, arXiv 2210.07229. Per block, from
below, with keys K and residuals R of the output: D = R K^T (`background_weight` * C + K K^T)^-1.
This is least squares, where C, the second moment of the keys, stands for all that should be
preserved. `turn=1` writes edit after edit, as WISE's tables have it; `turn=none` is MEMIT-MASS: all
edits at once on the base model, so each call learns the whole ledger again (values solved for are
kept in memory).

What departs from the published code: C is taken over self-generated text unless `corpus` names a
file, with a ridge; the end of the answer is learned too; the default window is the one published
for 32 blocks (4 to 8), at other depths the same share. C is factorised once and kept, so an edit
costs products: with X = C^-1 K, D = R (w I + K^T X)^-1 X^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from errata.config import PositiveInt, Range
from errata.methods.multi_layer_method import MultiLayerMethod
from errata.solvers.guards import GUARDED
from errata.solvers.moments import SecondMoment
from errata.solvers.multi_layer import MultiLayerConfig

WEIGHT = 0.1
"""Of d_in: the background's weight where none is given."""


@dataclass(frozen=True)
class MemitConfig(MultiLayerConfig):
    """Settings of MEMIT; the defaults are those published for GPT-J, but for the weight.

    Attributes:
        background_weight: lambda, the number of background tokens that C counts for. None: a tenth
            of d_in, which is the mean of k^T C^-1 k over the background's keys. (Measured on
            SmolLM2: at the published 15,000, for a d_in of 16,384, nothing is written there.)
    """

    method: ClassVar[str] = "memit"

    turn: PositiveInt | None = 1
    background_weight: Annotated[float, Range(1e-9)] | None = None


class Memit(MultiLayerMethod):
    """Distributes many facts over several value matrices by least squares."""

    config_class = MemitConfig
    paper = "arXiv 2210.07229"
    variants = MappingProxyType({"memit-mass": {"turn": None}, "memit-guarded": GUARDED})
    config: MemitConfig

    def layer_update(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        """Return the change (d_out, d_in) of one layer's value matrix, see `least_squares`."""
        moment, weight = self.statistics[layer], self.config.background_weight
        if weight is None:
            weight = WEIGHT * len(keys)
        return least_squares(keys, residuals, moment, weight)


def least_squares(keys: Tensor, residuals: Tensor, moment: SecondMoment, weight: float) -> Tensor:
    """Return R K^T (w C + K K^T)^-1, (d_out, d_in) in fp64.

    Args:
        keys: K, (d_in, n).
        residuals: R, (d_out, n).
        moment: C.
        weight: w.
    """
    keys = keys.to(moment.matrix)
    whitened = moment.solve(keys)
    system = keys.T @ whitened + weight * torch.eye(keys.shape[1]).to(keys)
    change: Tensor = residuals.to(keys) @ torch.linalg.solve(system, whitened.T)
    return change
