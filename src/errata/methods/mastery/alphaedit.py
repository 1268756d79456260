"""AlphaEdit: MEMIT's writing, confined to directions of key space that what is to stay does not
use.

Fang et al., ICLR 2025, arXiv 2410.02355. Per block, with P the projector onto the null space of C
(see `NullSpace`), K and R as in MEMIT, and K_p the keys of all earlier edits: (P (K K^T + K_p
K_p^T) + `l2` I) X = P K R^T, W' = W + X^T. After each turn the keys of its edits, on the model as
it is then, join K_p.

What departs from the published code: the null space is by default the directions that together hold
a hundredth of C's trace, since the published threshold (2e-2 on the singular values) is measured in
the keys' own units; its rank is reported, and none at all is an error. X lies in the null space, so
it is solved for there, in a symmetric system of its rank. K_p is kept as at most d_in rows with the
same K_p K_p^T. A turn that is not full yet is learned anew when more edits join it, so it does not
matter in how many calls they came. C's text, the ends of answers and the default window are as in
MEMIT.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from errata.config import check_range
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.weight_method import WeightMethod
from errata.solvers.moments import KeyStatistics, NullSpace
from errata.solvers.multi_layer import MultiLayerConfig, MultiLayerSolver

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlphaEditConfig(MultiLayerConfig):
    """Settings of AlphaEdit; the defaults are those published for GPT-J.

    Attributes:
        threshold: singular values of C below it are the null space; None: those that hold a
            hundredth of the trace.
        l2: weight of the change's own size.
    """

    method: ClassVar[str] = "alphaedit"

    threshold: float | None = None
    l2: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None:
            check_range("threshold", self.threshold, 0, math.inf)
        check_range("l2", self.l2, 1e-9, math.inf)


class AlphaEdit(WeightMethod):
    """AlphaEdit on one model, turn after turn."""

    config_class = AlphaEditConfig
    paper = "arXiv 2410.02355"
    needs_subject = True
    needs_statistics = True
    config: AlphaEditConfig

    def __init__(self, config: AlphaEditConfig, lm: LM) -> None:
        self.spreader = MultiLayerSolver(lm, config)
        super().__init__(config, lm, self.spreader.paths.values(), config.turn)
        self.statistics = KeyStatistics(lm, config.corpus, config.background, config.seed)
        self._spaces: dict[int, NullSpace] = {}

    def check(self, edits: Sequence[Edit]) -> None:
        """As every method; and the model must be one that values can be spread in.

        Raises:
            ArchitectureError: it is not.
        """
        super().check(edits)
        self.statistics.check()
        _ = self.spreader.gain

    @property
    def ranks(self) -> dict[int, int]:
        """Layer -> directions of its null space, as far as edits were written."""
        return {layer: space.rank for layer, space in self._spaces.items()}

    def learn(self, edits: Sequence[Edit]) -> None:
        """Solve for all values, change block after block within its null space, and remember the
        keys.
        """
        spaces = {layer: self.space(layer) for layer in self.spreader.paths}

        def change(layer: int, keys: Tensor, missing: Tensor) -> Tensor:
            return within(
                spaces[layer], keys, missing, self.extra_state.get(f"keys.{layer}"), self.config.l2
            )

        deltas = self.spreader.write(self.patch.deltas, self._edits, edits, change)
        self.extra_state = {
            f"keys.{layer}": folded(
                self.extra_state.get(f"keys.{layer}"), self.spreader.keys(deltas, layer, edits)
            )
            for layer in spaces
        }
        self.patch.deltas.update(deltas)

    def carried_shapes(self, edits: int) -> dict[str, tuple[int, ...]]:
        """Of each layer the keys of the turns before."""
        d_in = self.lm.architecture.d_in
        return {f"keys.{layer}": (min(edits, d_in), d_in) for layer in self.spreader.paths}

    def space(self, layer: int) -> NullSpace:
        """The null space of a layer's keys.

        Raises:
            ConfigError: nothing is in it.
        """
        if layer not in self._spaces:
            space = NullSpace(self.statistics[layer].matrix, self.config.threshold)
            log.info(
                "layer %d: the null space has %d of %d directions",
                layer,
                space.rank,
                len(space.basis),
            )
            if not space.rank:
                raise ConfigError(
                    f"threshold is {self.config.threshold}, and layer {layer}'s second moment has no singular value below; "
                    "give a larger threshold, or leave it out."
                )
            self._spaces[layer] = space
        return self._spaces[layer]


def within(
    space: NullSpace, keys: Tensor, missing: Tensor, earlier: Tensor | None, l2: float
) -> Tensor:
    """X^T of (P (K K^T + K_p K_p^T) + l2 I) X = P K R^T, (d_out, d_in) in fp64.

    Args:
        space: P.
        keys: K, (d_in, n).
        missing: R, (d_out, n).
        earlier: K_p^T, (m, d_in); None before the first turn.
        l2: weight of the change's own size.
    """
    basis = space.basis
    inside = basis.T @ keys.to(basis)
    known = inside if earlier is None else torch.cat([inside, basis.T @ earlier.T.to(basis)], dim=1)
    system = known @ known.T + l2 * torch.eye(space.rank).to(basis)
    solved = torch.cholesky_solve(inside, torch.linalg.cholesky(system))
    return missing.to(basis) @ solved.T @ basis.T


def folded(earlier: Tensor | None, keys: Tensor) -> Tensor:
    """K_p^T with the columns of `keys` (d_in, n) as further rows, fp32; at most d_in rows that have
    the same K_p K_p^T.
    """
    rows = keys.T.float() if earlier is None else torch.cat([earlier, keys.T.to(earlier)])
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows.double(), mode="r").R.float()
    return rows.contiguous()
