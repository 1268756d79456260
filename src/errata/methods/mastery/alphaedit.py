"""AlphaEdit: MEMIT's update, restricted to key directions that preserved knowledge leaves free.

Fang et al., ICLR 2025, arXiv 2410.02355. Per block, with P the projection onto the null space of C
(see `Projector`), K and R as in MEMIT, and K_p the keys of all earlier edits: (P (K K^T + K_p
K_p^T) + `l2` I) X = P K R^T, W' = W + X^T. After each turn the keys of its edits, measured on the
model as edited, join K_p.

What departs from the published code: the null space is by default the directions that together hold
a hundredth of C's trace, since the published threshold (2e-2 on the singular values) is in the
keys' own units; its rank is logged, and an empty one is an error. X lies in the null space, so it
is solved for there, in a symmetric system of its rank. K_p is kept as at most d_in rows with the
same K_p K_p^T. A turn that is not full is learned again when more edits join it, so it does not
matter in how many calls they came. Background text, endings of answers and the default window are
as in MEMIT.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from errata.config import NonNegativeFloat, Range
from errata.edit import Edit
from errata.errors import ConfigError
from errata.lm import LM
from errata.methods.multi_layer_method import MultiLayerMethod
from errata.solvers.guards import GUARDED
from errata.solvers.multi_layer import MultiLayerConfig
from errata.solvers.projector import Projector

log = logging.getLogger(__name__)
WEIGHT = 0.1
"""Of the background keys' squared length in the null space: `l2` where none is given."""


@dataclass(frozen=True)
class AlphaEditConfig(MultiLayerConfig):
    """Settings of AlphaEdit; the defaults are those published for GPT-J.

    Attributes:
        threshold: singular values of C below it belong to the null space; None: the smallest ones,
            up to a hundredth of the trace.
        l2: weight of the squared norm of the change; None: a tenth of the mean squared length that
            the background's keys have in the null space. It is in squared units of the keys, so the
            published 10 fits the published models.
    """

    method: ClassVar[str] = "alphaedit"

    threshold: NonNegativeFloat | None = None
    l2: Annotated[float, Range(1e-9)] | None = None


class AlphaEdit(MultiLayerMethod):
    """Distributes many facts over several value matrices, in the null space of other keys."""

    config_class = AlphaEditConfig
    paper = "arXiv 2410.02355"
    variants = MappingProxyType({"alphaedit-guarded": GUARDED})
    config: AlphaEditConfig

    def __init__(self, config: AlphaEditConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self._null_spaces: dict[int, Projector] = {}

    @property
    def ranks(self) -> dict[int, int]:
        """Layer -> rank of its null space, where edits have been written."""
        return {layer: space.rank for layer, space in self._null_spaces.items()}

    def learn(self, edits: Sequence[Edit]) -> None:
        """Write a turn, then add the keys of its edits to those of the turns before."""
        layers = list(self.solver.paths)
        for layer in layers:
            self.null_space(layer)  # an empty one is an error, before values are solved for
        super().learn(edits)
        keys = {
            _keys_name(layer): append_keys(
                self.extra_state.get(_keys_name(layer)),
                self.solver.keys(self.patch.deltas, layer, edits),
            )
            for layer in layers
        }
        self.extra_state = {**self.extra_state, **keys}

    def layer_update(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        """Return the change (d_out, d_in) of one layer's value matrix, see `null_space_update`."""
        earlier = self.extra_state.get(_keys_name(layer))
        space, l2 = self.null_space(layer), self.config.l2
        if l2 is None:
            l2 = WEIGHT * space.variance
        return null_space_update(space, keys, residuals, earlier, l2)

    def extra_state_shapes(self, edits: int) -> Mapping[str, tuple[int, ...]]:
        """Return names and shapes of the turns' keys, one a layer, and of what the guards keep."""
        d_in = self.lm.architecture.d_in
        keys = {_keys_name(layer): (min(edits, d_in), d_in) for layer in self.solver.paths}
        return {**super().extra_state_shapes(edits), **keys}

    def null_space(self, layer: int) -> Projector:
        """Return the null space of a layer's keys.

        Raises:
            ConfigError: it is empty.
        """
        if layer not in self._null_spaces:
            moment = self.statistics[layer].matrix
            space = Projector(len(moment))
            space.fit_moment(moment, self.config.threshold)
            sizes = space.rank, len(moment)
            log.info("layer %d: the null space has %d of %d directions", layer, *sizes)
            if not space.rank:
                raise ConfigError(
                    f"threshold is {self.config.threshold}, and layer {layer}'s second moment has "
                    "no singular value below; give a larger threshold, or leave it out."
                )
            self._null_spaces[layer] = space
        return self._null_spaces[layer]


def _keys_name(layer: int) -> str:
    """Return the name of a layer's earlier keys in the extra state."""
    return f"keys.{layer}"


def null_space_update(
    space: Projector, keys: Tensor, residuals: Tensor, earlier: Tensor | None, l2: float
) -> Tensor:
    """Return X^T of (P (K K^T + K_p K_p^T) + l2 I) X = P K R^T, (d_out, d_in) in fp64.

    Args:
        space: its free directions are the null space, with projection P.
        keys: K, (d_in, n).
        residuals: R, (d_out, n).
        earlier: K_p^T, (m, d_in); None before the first turn.
        l2: weight of the squared norm of the change.
    """
    basis = space.free
    projected = basis.T @ keys.to(basis)
    known = projected
    if earlier is not None:
        known = torch.cat([projected, basis.T @ earlier.T.to(basis)], dim=1)
    system = known @ known.T + l2 * torch.eye(space.rank).to(basis)
    solution = torch.cholesky_solve(projected, torch.linalg.cholesky(system))
    return residuals.to(basis) @ solution.T @ basis.T


def append_keys(earlier: Tensor | None, keys: Tensor) -> Tensor:
    """Return K_p^T in fp32 with the columns of `keys` (d_in, n) appended as rows.

    Where these are more than d_in, d_in rows that have the same K_p K_p^T.
    """
    rows = keys.T.float() if earlier is None else torch.cat([earlier, keys.T.to(earlier)])
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows.double(), mode="r").R.float()
    return rows.contiguous()
