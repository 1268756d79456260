"""`GuardedMethod`: the base of methods that write solved values into weights, with guards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.lm.weights import read_weight
from errata.methods.weight_method import WeightMethod
from errata.solvers.guards import ANCHORS, GuardedConfig, SpectralGuard, anchor

LENGTHS = "value_lengths"
"""The name of the first edits' lengths in the extra state."""


class GuardedMethod(WeightMethod):
    """A method that solves for values and writes them, guarded as its settings say.

    See `solvers/guards.py`.
    """

    needs_subject = True
    needs_statistics = True
    config: GuardedConfig

    def __init__(
        self, config: GuardedConfig, lm: LM, paths: Iterable[str], turn: int | None = 1
    ) -> None:
        super().__init__(config, lm, paths, turn)
        self._guards: dict[str, SpectralGuard] = {}

    @abstractmethod
    def length_on_base(self, edit: Edit) -> float:
        """Return the length of the value that is solved for on the base model."""

    def length(self, edits: Sequence[Edit]) -> float | None:
        """Return the length that the values of a turn get; None: the one they have.

        The model must carry no patch.
        """
        if not self.config.norm_guard:
            return None
        known = self.extra_state.get(LENGTHS, torch.zeros(0))
        new = [self.length_on_base(edit) for edit in edits[: ANCHORS - len(known)]]
        lengths = torch.cat([known, torch.tensor(new, device=known.device)])
        self.extra_state = {**self.extra_state, LENGTHS: lengths}
        return anchor(lengths)

    def guarded(self, path: str, change: Tensor) -> Tensor:
        """Return a change (d_out, d_in) of a matrix as the spectral guard lets it pass.

        The model must carry no patch.
        """
        if not self.config.spectral_guard:
            return change
        if path not in self._guards:
            weight = read_weight(self.lm.model.get_submodule(path))
            self._guards[path] = SpectralGuard(weight, self.config.spectral_guard)
        return self._guards[path].filter(change)

    def extra_state_shapes(self, edits: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of the first edits' lengths."""
        return {LENGTHS: (min(edits, ANCHORS),)} if self.config.norm_guard else {}
