"""MEMIT and MEMIT-MASS: many facts at once, spread over the value matrices of several blocks.

Meng et al., "Mass-Editing Memory in a Transformer", ICLR 2023, arXiv 2210.07229. Per block, from
below: with keys K and what they should say more R, D = R K^T (`background_weight` * C + K K^T)^-1:
least squares, where C, the second moment of the keys, stands for all that is to stay. `turn=1`
writes edit after edit, as WISE's tables have it; `turn=none` is MEMIT-MASS: all there are at once
on the base model, so each call learns the whole ledger anew (values found are kept in memory).

What departs from the published code: C is taken over the model's own text unless `corpus` names a
file, with a ridge; the end of the answer is learned too; the default window is the one published
for 32 blocks (4 to 8), elsewhere the same share of the depth. C is factorised once and kept, so an
edit costs products: with X = C^-1 K, D = R (w I + K^T X)^-1 X^T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from errata.config import check_range
from errata.edit import Edit
from errata.lm import LM
from errata.methods.weight_method import WeightMethod
from errata.solvers.moments import KeyStatistics, SecondMoment
from errata.solvers.multi_layer import MultiLayerConfig, MultiLayerSolver


@dataclass(frozen=True)
class MemitConfig(MultiLayerConfig):
    """Settings of MEMIT; the defaults are those published for GPT-J.

    Attributes:
        background_weight: lambda, so many background tokens weigh against an edit.
    """

    method: ClassVar[str] = "memit"

    turn: int | None = 1
    background_weight: float = 15_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("background_weight", self.background_weight, 1e-9, math.inf)


class Memit(WeightMethod):
    """MEMIT / MEMIT-MASS on one model."""

    config_class = MemitConfig
    paper = "arXiv 2210.07229"
    variants = MappingProxyType({"memit-mass": {"turn": None}})
    needs_subject = True
    needs_statistics = True
    config: MemitConfig

    def __init__(self, config: MemitConfig, lm: LM) -> None:
        self.spreader = MultiLayerSolver(lm, config)
        super().__init__(config, lm, self.spreader.paths.values(), config.turn)
        self.statistics = KeyStatistics(
            lm, config.corpus, config.background, config.seed, config.ridge
        )

    def check(self, edits: Sequence[Edit]) -> None:
        """As every method; and the model must be one that values can be spread in.

        Raises:
            ArchitectureError: it is not.
        """
        super().check(edits)
        self.statistics.check()
        _ = self.spreader.gain

    def learn(self, edits: Sequence[Edit]) -> None:
        """Solve for all values, then change block after block."""
        moments = {layer: self.statistics[layer] for layer in self.spreader.paths}

        def change(layer: int, keys: Tensor, missing: Tensor) -> Tensor:
            return least_squares(keys, missing, moments[layer], self.config.background_weight)

        self.patch.deltas.update(self.spreader.write(self.patch.deltas, self._edits, edits, change))


def least_squares(keys: Tensor, missing: Tensor, moment: SecondMoment, weight: float) -> Tensor:
    """R K^T (w C + K K^T)^-1, (d_out, d_in) in fp64.

    Args:
        keys: K, (d_in, n).
        missing: R, (d_out, n).
        moment: C.
        weight: w.
    """
    keys = keys.to(moment.matrix)
    solved = moment.solve(keys)
    among = keys.T @ solved + weight * torch.eye(keys.shape[1]).to(keys)
    change: Tensor = missing.to(keys) @ torch.linalg.solve(among, solved.T)
    return change
