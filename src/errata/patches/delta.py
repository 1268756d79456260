"""`WeightDelta`: changes added into weight matrices. It decides nothing: every input sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from errata.lm import LM
from errata.lm.weights import add_to_weight, read_weight
from errata.patches.base import Patch
from errata.storage import state


class WeightDelta(Patch):
    """Add a delta (d_out, d_in) to each of some linear modules.

    The matrices as they were are kept while the patch is installed, since W + D - D need not be W
    in floating point.

    Args:
        deltas: by the module's full dotted name, see `Architecture.value_path`.
    """

    def __init__(self, deltas: Mapping[str, Tensor]) -> None:
        self.deltas = dict(deltas)
        self._before: dict[str, Tensor] = {}

    @classmethod
    def zeros(cls, lm: LM, paths: Iterable[str]) -> WeightDelta:
        """No change yet, of the modules so named."""
        weights = {path: read_weight(lm.model.get_submodule(path)) for path in paths}
        return cls(
            {
                path: torch.zeros(w.shape, dtype=torch.float32, device=w.device)
                for path, w in weights.items()
            }
        )

    def state(self) -> dict[str, Tensor]:
        """The deltas by path, on the CPU."""
        return {path: delta.cpu() for path, delta in self.deltas.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the deltas that `state` gave.

        Raises:
            KeyError: one is missing.
            ValueError: one is of another shape.
        """
        self.deltas = {
            path: state.tensor(tensors, path, now.shape).to(now)
            for path, now in self.deltas.items()
        }

    def _attach(self, lm: LM) -> None:
        for path, delta in self.deltas.items():
            module = lm.model.get_submodule(path)
            self._before[path] = read_weight(module).clone()
            add_to_weight(module, delta)

    def _detach(self, lm: LM) -> None:
        for path, weight in self._before.items():
            read_weight(lm.model.get_submodule(path)).copy_(weight)
        self._before = {}
