"""`WeightMethod`: what the methods have in common that change weight matrices, turn after turn."""

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


class WeightMethod(Method):
    """A method that changes weight matrices, in turns.

    A turn is so many edits learned together: by default one. The ledger is cut into turns by count
    alone, so it does not matter in how many calls it came: a turn that is not full yet is learned
    anew when more edits join it.

    Args:
        config: the method's settings.
        lm: the base model without patches.
        paths: the modules it changes, see `Architecture.value_path`.
        turn: edits learned together; None: all there are, on the base model.

    Attributes:
        extra_state: what the method takes from turn to turn beside the deltas; saved with them.
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
        self._settled: dict[str, Tensor] = {}

    @property
    def patch(self) -> WeightDelta:
        """The changes, by path."""
        return self._patch

    @property
    def relearns_all(self) -> bool:
        """Whether there is one turn only."""
        return self.turn is None

    @abstractmethod
    def learn(self, edits: Sequence[Edit]) -> None:
        """Change the deltas so that the model knows one turn more; the ledger still lacks it.

        The deltas are replaced, never written into, and so is what is `extra_state`.
        """

    def weight_changes(self) -> Mapping[str, Tensor]:
        """The deltas."""
        return self._patch.deltas

    def clear(self) -> None:
        """Forget all edits."""
        self._patch = WeightDelta.zeros(self.lm, self._patch.deltas)
        self._edits = []
        self.extra_state = {}

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, turn after turn."""
        begun = len(self._edits) % self.turn if self.turn else len(self._edits)
        waiting = [*self._edits[len(self._edits) - begun :], *edits]
        size = self.turn or len(waiting)
        for start in range(0, len(waiting), size):
            turn = waiting[start : start + size]
            with self._turn_or_nothing():
                if begun and start == 0:
                    self._restore(self._settled)
                    self._edits = self._edits[:-begun]
                if self.turn != 1:
                    self._settled = self._snapshot()
                self.learn(turn)
                self._edits = [*self._edits, *turn]
            progress(len(turn) - (begun if start == 0 else 0))

    @contextlib.contextmanager
    def _turn_or_nothing(self) -> Iterator[None]:
        """As `all_or_nothing`, without a copy: tensors are replaced, never written into."""
        tensors, settled, edits = self._snapshot(), self._settled, self._edits
        try:
            yield
        except BaseException:
            self._restore(tensors)
            self._settled, self._edits = settled, edits
            raise

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The deltas (d_out, d_in) in fp32, by path; what is extra_state; of a turn that is not
        full, both before it too.
        """
        tensors = self._snapshot()
        if self.turn and len(self._edits) % self.turn:
            tensors |= {f"settled.{name}": tensor for name, tensor in self._settled.items()}
        return {name: tensor.cpu() for name, tensor in tensors.items()}, {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        begun = len(edits) % self.turn if self.turn else 0
        if begun:
            before = {
                name.removeprefix("settled."): t
                for name, t in tensors.items()
                if name.startswith("settled.")
            }
            self._check(before, len(edits) - begun)
            self._settled = before
        else:
            self._settled = {} if self.turn else self._snapshot()
        self._check(tensors, len(edits))
        self._restore(tensors)
        self._edits = list(edits)

    def carried_shapes(self, edits: int) -> Mapping[str, tuple[int, ...]]:
        """What is `extra_state` behind so many edits, one at least, and of which shape."""
        return {}

    def _check(self, tensors: Mapping[str, Tensor], edits: int) -> None:
        """Make sure that these are the deltas, and what is extra_state, of so many edits."""
        for path, now in self._patch.deltas.items():
            state.tensor(tensors, path, now.shape)
        shapes = self.carried_shapes(edits) if edits else {}
        for name, shape in shapes.items():
            state.tensor(tensors, f"carried.{name}", shape)
        for name in tensors:
            if name.startswith("carried.") and name.removeprefix("carried.") not in shapes:
                raise ValueError(f"{name!r} is not what this method carries")

    def _snapshot(self) -> dict[str, Tensor]:
        return {
            **self._patch.deltas,
            **{f"carried.{name}": tensor for name, tensor in self.extra_state.items()},
        }

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._patch.load_state(tensors)
        device = self.lm.device
        self.extra_state = {
            n.removeprefix("carried."): t.to(device)
            for n, t in tensors.items()
            if n.startswith("carried.")
        }
