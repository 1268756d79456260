"""`Method`: the algorithm that turns edits into a patch. It loads, evaluates and logs nothing.

A method's file holds its docstring (the paper, and what departs from it), its config and its class.
What it can do is declared on the class; `errata methods` and the docs are made from that.
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
from errata.lm.encoding import Row
from errata.patches import Patch
from errata.report import Explanation

Progress = Callable[[int], None]
"""Called with the number of edits just finished."""
Carry = Callable[[Tensor, int, int], Tensor]
"""(values (..., d_out) there, the block there, the block here) -> values (..., d_out) here."""


def no_progress(_: int) -> None:
    """Ignore progress."""


class Method(ABC):
    """An editing method on one base model.

    Its state is a pure function of (base model, config, ledger); in how many calls the ledger was
    written does not matter.

    Args:
        config: the method's settings; those left open (None) are derived from the model.
        lm: the base model without patches.
    """

    config_class: ClassVar[type[MethodConfig]]
    phase: ClassVar[Literal["recognition", "association", "mastery"]]
    operations: ClassVar[tuple[str, ...]] = ("insert", "modify", "erase")
    """What the method can do to a fact; new edits with another operation are refused."""
    refuses: ClassVar[bool] = True
    """Whether `erase` writes the refusal; else what the base model told is only suppressed."""
    undo_is: ClassVar[str]
    """How exact an undo is and what it costs, in a few words."""
    paper: ClassVar[str]
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """The method's names with other settings: name -> those settings."""
    needs_subject: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False
    """Whether the patch reads the words of a prompt, so that it needs its tokens."""
    shares_rows: ClassVar[bool] = True
    """Whether the patch can leave rows of a batch to another, see `Patch.asked`."""

    def __init__(self, config: MethodConfig, lm: LM) -> None:
        self.lm = lm
        self.config: Any = config
        self._edits: list[Edit] = []

    @classmethod
    def called(cls, config: MethodConfig) -> str:
        """Return the method's name with these settings: a variant's if they fit, else its own."""
        for name, settings in cls.variants.items():
            if all(getattr(config, key) == value for key, value in settings.items()):
                return name
        return config.method

    @property
    def name(self) -> str:
        """The method's name with its settings."""
        return self.called(self.config)

    @property
    def edits(self) -> list[Edit]:
        """The ledger: every edit now in the model, oldest first."""
        return list(self._edits)

    @property
    @abstractmethod
    def patch(self) -> Patch:
        """The patch that carries the edits; the same object until something is written."""

    @classmethod
    def is_trained(cls, config: MethodConfig) -> bool:
        """Return whether a method of these settings is trained before it writes."""
        return cls.needs_training

    @property
    def steps_left(self) -> int:
        """Training steps still to be made; a method that `needs_training` overrides this."""
        return int(self.needs_training)

    @property
    def prepared(self) -> bool:
        """Whether the method can write; one that `needs_training` cannot before `prepare`."""
        return not self.steps_left

    @property
    def relearns_all(self) -> bool:
        """Whether each write learns the whole ledger anew, so that one large write is cheapest."""
        return False

    def prepare(self, examples: Sequence[Example], progress: Progress = no_progress) -> None:
        """Train the method, from where it stopped; `state` is valid at each call of `progress`.

        Args:
            examples: what to learn from; none of them may be in the stream to come.
            progress: called with the number of steps just made.

        Raises:
            ConfigError: the method needs no training.
            EditError: an example lacks what the method learns from.
        """
        raise ConfigError(f"{self.name} needs no training; write edits with it.")

    def check(self, edits: Sequence[Edit]) -> None:
        """Check that edits can be written.

        Raises:
            ConfigError: the method must be trained first.
            EditError: an edit lacks the subject that the method needs, or has an operation that
                the method cannot do.
        """
        name = self.name
        if not self.prepared:
            raise ConfigError(
                f"{name} is not trained for this model yet: `errata prepare MODEL -m {name} "
                "--cases FILE --out DIR`, then edit DIR (in Python, EditModel.prepare)."
            )
        for edit in edits:
            if edit.operation not in self.operations:
                raise EditError(
                    f"{name} cannot {edit.operation} ({quoted(edit.prompt)}); it can "
                    f"{' and '.join(self.operations)}. Say with 'modify' what should be answered "
                    "instead."
                )
            if self.needs_subject and edit.subject is None:
                raise EditError(
                    f"{name} needs to know each edit's subject; {quoted(edit.prompt)} has none: "
                    "give the field 'subject'."
                )

    def conflicts(self, edits: Sequence[Edit]) -> list[Conflict]:
        """Return (new id, older id) of edits with the same prompt and another answer.

        The older edit is in the ledger, or earlier among the new. A method may override which
        edits ask the same. The base model must carry no patch.
        """
        return same_prompt_conflicts(edits, self.edits)

    def warnings(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """Return (edit id, warning) of edits just written. The base model must carry no patch."""
        return []

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Return which edit answers each prompt, and why. The base model must carry no patch.

        Raises:
            ConfigError: the method does not choose among edits.
        """
        raise ConfigError(
            f"{self.name} does not choose one edit for a prompt, so there is nothing to explain; "
            "folio does."
        )

    def weight_changes(self) -> Mapping[str, Tensor]:
        """Return the changes of weight matrices, (d_out, d_in) by path, if the edits are no more.

        Raises:
            ConfigError: the edits are something else.
        """
        raise ConfigError(
            f"the edits of {self.config.method} are no change of the base model's weights and "
            "cannot be merged into them; save_pretrained keeps them, unload gives the base model "
            "back without them."
        )

    def take(self, source: Method, carry: Carry) -> None:
        """Take the edits of this method on another model, and train nothing.

        What is learned for an edit is carried over; what a model makes of a prompt is read on this
        one. The base model must carry no patch, and this method has no edits yet.

        Args:
            source: the same method on the other model.
            carry: brings values into this model's space.

        Raises:
            ConfigError: what the method learns is not to be had edit by edit, or not as values.
        """
        raise ConfigError(
            f"what {self.name} learns of an edit cannot be carried to another model; move its "
            "edits without --carry, and they are written there anew."
        )

    @abstractmethod
    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits. The base model must carry no patch meanwhile.

        If it is interrupted, by an error or the keyboard, every edit is either written whole and in
        the ledger, or not at all.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget all edits, but not the training."""

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits; unless a method overrides it, all others are written anew, in order.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
        """
        removed = self.check_ids(edit_ids)
        kept = [edit for edit in self._edits if edit.id not in removed]
        with self.all_or_nothing():
            self.clear()
            if kept:
                self.write(kept)

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Restore the method if a `with` block is interrupted, by an error or the keyboard."""
        edits, (tensors, values) = self.edits, self.state()
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            yield
        except BaseException:
            self.load_state(edits, tensors, values)
            raise

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors, values for JSON): with the ledger, all that `load_state` needs."""

    @abstractmethod
    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """

    def encode(self, edit: Edit) -> Row:
        """Encode an edit's prompt, target and ending. The base model must carry no patch."""
        return self.lm.encode(edit.prompt, edit.target, self.lm.ending_of(edit.prompt, edit.target))

    def check_ids(self, edit_ids: Iterable[str]) -> set[str]:
        """Return the ids as a set.

        Raises:
            UnknownNameError: no edit in the ledger has such an id.
        """
        known = [edit.id for edit in self.edits]
        ids = set(edit_ids)
        for name in sorted(ids - set(known)):
            near = suggest(name, known) if len(known) <= 20 else " `errata list` shows the ids."
            raise UnknownNameError(f"no edit has the id {name!r}.{near}")
        return ids
