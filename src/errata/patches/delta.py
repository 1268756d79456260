"""`WeightDelta`: changes added to weight matrices. Every input sees them; nothing is routed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.lm.weights import add_to_weight, read_weight
from errata.patches.base import Patch
from errata.patches.shared_rows import kept_outputs, with_weight
from errata.storage import state


class WeightDelta(Patch):
    """Add a delta (d_out, d_in) to the weight of each of some linear modules.

    Copies of the original weights are kept while the patch is installed, since W + D - D need not
    be W in floating point.

    Args:
        deltas: by the module's full dotted name, see `Architecture.value_path`.
    """

    shares_rows = True

    def __init__(self, deltas: Mapping[str, Tensor]) -> None:
        self.deltas = dict(deltas)
        self._originals: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    @classmethod
    def zeros(cls, lm: LM, paths: Iterable[str]) -> WeightDelta:
        """Make fp32 deltas of zeros for the modules at these paths."""
        weights = {path: read_weight(lm.model.get_submodule(path)) for path in paths}
        return cls(
            {
                path: torch.zeros(w.shape, dtype=torch.float32, device=w.device)
                for path, w in weights.items()
            }
        )

    def state(self) -> dict[str, Tensor]:
        """Return the deltas by path, on the CPU."""
        return {path: delta.cpu() for path, delta in self.deltas.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the deltas that `state` gave.

        Raises:
            KeyError: one is missing.
            ValueError: one has another shape.
        """
        self.deltas = {
            path: state.tensor(tensors, path, delta.shape).to(delta)
            for path, delta in self.deltas.items()
        }

    def _attach(self, lm: LM) -> None:
        for path, delta in self.deltas.items():
            module = lm.model.get_submodule(path)
            self._originals[path] = read_weight(module).clone()
            add_to_weight(module, delta)
        if self.asked is not None:
            modules = {path: lm.model.get_submodule(path) for path in self.deltas}
            originals = {
                path: with_weight(modules[path], weight) for path, weight in self._originals.items()
            }
            self._handles = kept_outputs(modules, originals, self.rows)

    def _detach(self, lm: LM) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for path, weight in self._originals.items():
            read_weight(lm.model.get_submodule(path)).copy_(weight)
        self._originals = {}
