"""`Method`: the algorithm that turns edits into a patch, again and again. It loads nothing,
evaluates nothing, logs nothing.

A method's file holds its docstring (paper, what departs from it), its config and its class, and
nothing else. What it can do is declared on the class; `errata methods` and the docs are made from
that.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor

from errata.config import MethodConfig
from errata.conflicts import Conflict, same_prompt_conflicts
from errata.edit import Edit, Example
from errata.errors import ConfigError, EditError, UnknownNameError, quoted, suggest
from errata.lm import LM
from errata.patches import Patch
from errata.report import Explanation

Progress = Callable[[int], None]
"""Called with the number of edits just finished."""


def no_progress(_: int) -> None:
    """The `Progress` of a caller who does not want to know."""


class Method(ABC):
    """An editing method on one base model.

    The state is a pure function of (base model, config, ledger): it does not matter in how many
    calls the ledger came.

    Args:
        config: the method's settings; what they leave open (None) is derived from the model.
        lm: the base model without patches.
    """

    config_class: ClassVar[type[MethodConfig]]
    phase: ClassVar[Literal["recognition", "association", "mastery"]]
    operations: ClassVar[tuple[str, ...]] = ("insert", "modify")
    """What it may be asked to do to a fact; new edits of other operations are refused."""
    undo_is: ClassVar[str]
    """How exact an undo is and what it costs, in a few words."""
    paper: ClassVar[str]
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """What the method is called with other settings than its own: name -> those settings."""
    needs_subject: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    """Whether the patch reads the words of a prompt, so that it needs its tokens."""

    def __init__(self, config: MethodConfig, lm: LM) -> None:
        self.lm = lm
        self.config: Any = config
        self._edits: list[Edit] = []

    @classmethod
    def called(cls, config: MethodConfig) -> str:
        """Its name with these settings: that of the variant that has them, else its own."""
        for name, settings in cls.variants.items():
            if all(getattr(config, key) == value for key, value in settings.items()):
                return name
        return config.method

    @property
    def name(self) -> str:
        """What the method is called with its settings."""
        return self.called(self.config)

    @property
    def edits(self) -> list[Edit]:
        """The ledger: every edit that is in the model now, oldest first."""
        return list(self._edits)

    @property
    @abstractmethod
    def patch(self) -> Patch:
        """What the edits leave behind. The same object as long as nothing is written."""

    @property
    def steps_left(self) -> int:
        """Training steps still to be made; 0 for a method that needs none. One that
        `needs_training` says its own.
        """
        return int(self.needs_training)

    @property
    def prepared(self) -> bool:
        """Whether the method can write; one that `needs_training` cannot before `prepare`."""
        return not self.steps_left

    @property
    def relearns_all(self) -> bool:
        """Whether each write learns the whole ledger anew, so that one write of all is the cheap
        way.
        """
        return False

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train the method. It goes on where it stopped, and is whole (for `state`) whenever
        `progress` is called.

        Args:
            examples: what to learn from; none of them may be in the stream to come.
            progress: called with the number of steps just made.

        Raises:
            ConfigError: the method needs no training.
            EditError: an example lacks what the method learns from.
        """
        raise ConfigError(f"{self.name} needs no training; write edits with it.")

    def check(self, edits: Sequence[Edit]) -> None:
        """Make sure that edits can be written.

        Raises:
            ConfigError: the method must be trained first.
            EditError: an edit lacks its subject, and the method needs it; or it asks for an
                operation that there is not.
        """
        name = self.name
        if not self.prepared:
            raise ConfigError(
                f"{name} is not trained for this model yet: `errata prepare MODEL -m {name} --cases FILE --out DIR`, "
                "then edit DIR (in Python, EditModel.prepare)."
            )
        for edit in edits:
            if edit.operation not in self.operations:
                able = " and ".join(self.operations)
                raise EditError(
                    f"{name} cannot {edit.operation} ({quoted(edit.prompt)}); it can {able}. Say with 'modify' what should "
                    "be answered instead."
                )
            if self.needs_subject and edit.subject is None:
                raise EditError(
                    f"{name} needs to know each edit's subject; {quoted(edit.prompt)} has none: give the field 'subject'."
                )

    def conflicts(self, edits: Sequence[Edit]) -> list[Conflict]:
        """Find (new id, older id) of edits that ask what an older one asks and want another answer.

        Older ones are those in the ledger, and those before it among the new. Unless a method knows
        better, edits ask the same when their prompts are. The base model must carry no patch.
        """
        return same_prompt_conflicts(edits, self.edits)

    def warnings(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """(edit id, what a person should know of it) of edits just written. The base model must
        carry no patch.
        """
        return []

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Which edit answers each prompt, and why. The base model must carry no patch.

        Raises:
            ConfigError: the method does not choose among edits.
        """
        raise ConfigError(
            f"{self.name} does not choose one edit for a prompt, so there is nothing to explain; folio does."
        )

    def weight_changes(self) -> Mapping[str, Tensor]:
        """What the edits change in weight matrices, (d_out, d_in) by path, where that is all that
        they are.

        Raises:
            ConfigError: they are something else.
        """
        raise ConfigError(
            f"the edits of {self.config.method} are no change of the base model's weights and cannot be merged into them; "
            "save_pretrained keeps them, unload gives the base model back without them."
        )

    @abstractmethod
    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits. The base model must carry no patch meanwhile.

        Whatever breaks it off, an error or the keyboard, whole edits are in, and the ledger says
        which.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget all edits: the method is as it was when it was made, or trained."""

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits back. Unless a method knows better, all others are written anew, in their
        order.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        gone = self.check_ids(edit_ids)
        kept = [edit for edit in self._edits if edit.id not in gone]
        with self.all_or_nothing():
            self.clear()
            if kept:
                self.write(kept)

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Whatever breaks a `with` block off, an error or the keyboard, leaves the method as it was
        before the block.
        """
        edits, (tensors, values) = self.edits, self.state()
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            yield
        except BaseException:
            self.load_state(edits, tensors, values)
            raise

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values for JSON): with the ledger, all that is needed to go on elsewhere."""

    @abstractmethod
    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
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
