"""`MultiLayerMethod`: the base of methods that distribute values over several value matrices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.methods.guarded_method import GuardedMethod
from errata.solvers.moments import KeyStatistics
from errata.solvers.multi_layer import MultiLayerConfig, MultiLayerSolver


class MultiLayerMethod(GuardedMethod):
    """A method that solves for the values of a turn and changes block after block accordingly.

    Args:
        config: the method's settings.
        lm: the base model without patches.

    Attributes:
        solver: solves for the values and distributes them.
        statistics: second moments of the keys, by layer.
    """

    def __init__(self, config: MultiLayerConfig, lm: LM) -> None:
        self.solver = MultiLayerSolver(lm, config)
        super().__init__(config, lm, self.solver.paths.values(), config.turn)
        self.statistics = KeyStatistics(
            lm, self.solver.paths, config.corpus, config.background, config.seed, config.ridge
        )

    def check(self, edits: Sequence[Edit]) -> None:
        """Make sure that edits can be written.

        Raises:
            ConfigError: the corpus is missing, not text, or too short.
            ArchitectureError: the model's blocks normalise their value matrix's output.
        """
        super().check(edits)
        self.statistics.check()
        _ = self.solver.gain

    def learn(self, edits: Sequence[Edit]) -> None:
        """Solve for the values of a turn, then change block after block."""

        def update(layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
            change = self.layer_update(layer, keys, residuals)
            return self.guarded(self.solver.paths[layer], change)

        length = self.length(edits)
        deltas = self.solver.solve(self.patch.deltas, self._edits, edits, update, length)
        self.patch.deltas.update(deltas)

    def length_on_base(self, edit: Edit) -> float:
        """Return the length of the value that is solved for on the base model."""
        return self.solver.length_on_base(edit)

    @abstractmethod
    def layer_update(self, layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        """Return the change (d_out, d_in) of one layer's value matrix.

        Args:
            keys: K, (d_in, n).
            residuals: R, (d_out, n), to be added to the matrix's output at these keys.
        """
