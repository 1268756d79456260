"""`WeightMethod`: the base of methods that change weight matrices, turn after turn."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from errata.config import MethodConfig
from errata.edit import Edit
from errata.lm import LM
from errata.methods.base import Method, Progress, no_progress
from errata.patches import WeightDelta
from errata.storage import state

EXTRA, TURN_START = "carried.", "settled."
"""Prefixes of tensor names in a saved state: of the extra state, and of all that was there before a
turn that is not full.
"""


class WeightMethod(Method):
    """A method that changes weight matrices, in turns.

    A turn is a number of edits learned together, by default one. The ledger is cut into turns by
    count alone, so it does not matter in how many calls it came: a turn that is not full is learned
    again when more edits join it.

    Args:
        config: the method's settings.
        lm: the base model without patches.
        paths: the modules it changes, see `Architecture.value_path`.
        turn: edits learned together; None: the whole ledger, on the base model.

    Attributes:
        extra_state: tensors that a turn needs from the turns before, in addition to the deltas;
            saved with them.
    """

    phase = "mastery"
    undo_is = "exact, by writing the whole ledger anew"

    def __init__(
        self, config: MethodConfig, lm: LM, paths: Iterable[str], turn: int | None = 1
    ) -> None:
        super().__init__(config, lm)
        self.turn = turn
        self.extra_state: dict[str, Tensor] = {}
        self._patch = WeightDelta.zeros(lm, paths)
        self._turn_start: dict[str, Tensor] = {}

    @property
    def patch(self) -> WeightDelta:
        """The changes of the matrices, by path."""
        return self._patch

    @property
    def relearns_all(self) -> bool:
        """Whether the whole ledger is one turn."""
        return self.turn is None

    @abstractmethod
    def learn(self, edits: Sequence[Edit]) -> None:
        """Change the deltas so that the model knows one more turn, which is not in the ledger yet.

        Replace the deltas and the tensors of `extra_state`, never write into them.
        """

    def weight_changes(self) -> Mapping[str, Tensor]:
        """Return the deltas (d_out, d_in), by path."""
        return self._patch.deltas

    def clear(self) -> None:
        """Forget all edits."""
        self._patch = WeightDelta.zeros(self.lm, self._patch.deltas)
        self._edits = []
        self.extra_state = {}

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, turn after turn."""
        unfinished = len(self._edits) % self.turn if self.turn else len(self._edits)
        pending = [*self._edits[len(self._edits) - unfinished :], *edits]
        size = self.turn or len(pending)
        for start in range(0, len(pending), size):
            turn, again = pending[start : start + size], unfinished if start == 0 else 0
            with self._turn_or_nothing():
                if again:
                    self._restore(self._turn_start)
                    self._edits = self._edits[:-again]
                if self.turn != 1:
                    self._turn_start = self._snapshot()
                self.learn(turn)
                self._edits = [*self._edits, *turn]
            progress(len(turn) - again)

    @contextlib.contextmanager
    def _turn_or_nothing(self) -> Iterator[None]:
        """Restore the state when the block raises.

        Unlike `all_or_nothing` it makes no copy, since tensors are never written into.
        """
        tensors, turn_start, edits = self._snapshot(), self._turn_start, self._edits
        try:
            yield
        except BaseException:
            self._restore(tensors)
            self._turn_start, self._edits = turn_start, edits
            raise

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the deltas (d_out, d_in) in fp32, by path, and the extra state.

        Where the last turn is not full, also both as they were before it.
        """
        tensors = self._snapshot()
        if self.turn and len(self._edits) % self.turn:
            tensors |= {f"{TURN_START}{name}": t for name, t in self._turn_start.items()}
        return {name: tensor.cpu() for name, tensor in tensors.items()}, {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()`."""
        unfinished = len(edits) % self.turn if self.turn else 0
        if unfinished:
            turn_start = _section(tensors, TURN_START)
            self._check_tensors(turn_start, len(edits) - unfinished)
            self._turn_start = turn_start
        else:
            self._turn_start = {} if self.turn else self._snapshot()
        self._check_tensors(tensors, len(edits))
        self._restore(tensors)
        self._edits = list(edits)

    def extra_state_shapes(self, edits: int) -> Mapping[str, tuple[int, ...]]:
        """Return names and shapes of the extra state after this many edits, at least one."""
        return {}

    def _check_tensors(self, tensors: Mapping[str, Tensor], edits: int) -> None:
        """Raise `KeyError` or `ValueError` unless deltas and extra state fit that many edits."""
        for path, delta in self._patch.deltas.items():
            state.tensor(tensors, path, delta.shape)
        shapes = self.extra_state_shapes(edits) if edits else {}
        for name, shape in shapes.items():
            state.tensor(tensors, EXTRA + name, shape)
        for name in _section(tensors, EXTRA):
            if name not in shapes:
                raise ValueError(f"{EXTRA + name!r} is not what this method carries")

    def _snapshot(self) -> dict[str, Tensor]:
        """Return the deltas and the extra state, by their names in a saved state."""
        extra = {f"{EXTRA}{name}": tensor for name, tensor in self.extra_state.items()}
        return {**self._patch.deltas, **extra}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a snapshot."""
        self._patch.load_state(tensors)
        extra = _section(tensors, EXTRA)
        self.extra_state = {name: tensor.to(self.lm.device) for name, tensor in extra.items()}


def _section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, under their names without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
