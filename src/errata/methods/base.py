"""`Method`: the algorithm that turns edits into a patch, again and again. It loads nothing, evaluates nothing, logs nothing.

A method's file holds its docstring (paper, what departs from it), its config and its class, and nothing else. What it
can do is declared on the class; `errata methods` and the docs are made from that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from errata.config import MethodConfig
from errata.edit import Edit
from errata.errors import UnknownNameError, suggest
from errata.lm import LM
from errata.patches import Patch, WeightDelta

Progress = Callable[[int], None]
"""Called with the number of edits just finished."""


def no_progress(_: int) -> None:
    """The `Progress` of a caller who does not want to know."""


class Method(ABC):
    """An editing method on one base model.

    The state is a pure function of (base model, config, ledger): it does not matter in how many calls the ledger came.

    Args:
        config: the method's settings; what they leave open (None) is derived from the model.
        lm: the base model without patches.
    """

    config_class: ClassVar[type[MethodConfig]]
    phase: ClassVar[Literal["recognition", "association", "mastery"]]
    operations: ClassVar[tuple[str, ...]] = ("insert", "modify", "erase")
    undo_is: ClassVar[str]
    """How exact an undo is and what it costs, in a few words."""
    paper: ClassVar[str]
    mergeable: ClassVar[bool] = False
    needs_subject: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False

    def __init__(self, config: MethodConfig, lm: LM) -> None:
        self.lm = lm
        self.config: Any = config
        self._edits: list[Edit] = []

    @property
    def edits(self) -> list[Edit]:
        """The ledger: every edit that is in the model now, oldest first."""
        return list(self._edits)

    @property
    @abstractmethod
    def patch(self) -> Patch:
        """What the edits leave behind. The same object as long as nothing is written."""

    @abstractmethod
    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits. The base model must carry no patch meanwhile."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all edits: the method is as it was when it was made."""

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits back. Unless a method knows better, all others are written anew, in their order.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        gone = self.check_ids(edit_ids)
        kept = [edit for edit in self._edits if edit.id not in gone]
        self.clear()
        if kept:
            self.write(kept)

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values for JSON): with the ledger, all that is needed to go on elsewhere."""

    @abstractmethod
    def load_state(self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Be what `state` described.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """

    def check_ids(self, edit_ids: Iterable[str]) -> set[str]:
        """The ids as a set.

        Raises:
            UnknownNameError: no edit in the ledger has such an id.
        """
        known = [edit.id for edit in self.edits]
        wanted = set(edit_ids)
        for name in sorted(wanted - set(known)):
            near = suggest(name, known) if len(known) <= 20 else " `errata list` shows the ids."
            raise UnknownNameError(f"no edit has the id {name!r}.{near}")
        return wanted


class WeightMethod(Method):
    """A method that changes weight matrices, one edit after another.

    Args:
        config: the method's settings.
        lm: the base model without patches.
        paths: the modules it changes, see `Architecture.value_path`.
    """

    phase = "mastery"
    undo_is = "exact, by writing the whole ledger anew"
    mergeable = True

    def __init__(self, config: MethodConfig, lm: LM, paths: Iterable[str]) -> None:
        super().__init__(config, lm)
        self._patch = WeightDelta.zeros(lm, paths)

    @property
    def patch(self) -> WeightDelta:
        """The changes, by path."""
        return self._patch

    @abstractmethod
    def learn(self, edit: Edit) -> None:
        """Change the deltas so that the model knows one more edit; the ledger still lacks it."""

    def clear(self) -> None:
        """Forget all edits."""
        self._patch = WeightDelta.zeros(self.lm, self._patch.deltas)
        self._edits = []

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        for edit in edits:
            self.learn(edit)
            self._edits.append(edit)
            progress(1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The deltas (d_out, d_in) in fp32, by path."""
        return self._patch.state(), {}

    def load_state(self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Be what `state` described."""
        self._patch.load_state(tensors)
        self._edits = list(edits)
