"""`AdapterMethod`: a method that trains a patch's parameters beside a frozen model, edit by edit.

Writing and state are here; settings and training are in `solvers/adapters.py`, the patches in
`patches/adapter.py` and `patches/virtual_tokens.py`.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.methods.base import Method, Progress, no_progress
from errata.patches import Adapters, Patch, VirtualTokens, WeightDelta
from errata.solvers.adapters import AdapterTrainer, AdapterTrainerConfig

Trained = Adapters | VirtualTokens
"""A patch whose parameters an `AdapterTrainer` can train."""


class AdapterMethod(Method):
    """A method that trains parameters beside a frozen model, on one edit after another.

    Args:
        config: the method's settings.
        lm: the base model without patches.
        room: tokens of the context that the patch takes for itself.
    """

    phase = "association"
    undo_is = "exact, by writing the whole ledger anew"

    def __init__(self, config: AdapterTrainerConfig, lm: LM, room: int = 0) -> None:
        super().__init__(config, lm)
        self.trainer = AdapterTrainer(lm, config, room)
        self.trained: Trained | None = None
        self._empty_patch = WeightDelta({})

    @abstractmethod
    def begin(self) -> Trained:
        """Return the untrained patch, a function of the config and the base model alone."""

    @property
    def patch(self) -> Patch:
        """The trained patch; one that changes nothing before the first edit."""
        return self._empty_patch if self.trained is None else self.trained

    def check(self, edits: Sequence[Edit]) -> None:
        """Check that edits can be written.

        Raises:
            PromptTooLongError: an edit leaves no room for the virtual tokens, on a model that
                counts them.
        """
        super().check(edits)
        room, limit = self.trainer.room, self.lm.context_length
        for edit in edits if room and limit else ():
            if (length := len(self.lm.encode(edit.prompt, edit.target, ".").ids)) + room > limit:
                raise PromptTooLongError(
                    f"the prompt {edit.prompt[:40]!r} with its answer takes {length} tokens and "
                    f"{self.config.method} {room} more; this model's context is {limit}. Shorten "
                    "the prompt, or give fewer tokens."
                )

    def clear(self) -> None:
        """Forget all edits."""
        self.trained = None
        self._edits = []

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Restore the method if a `with` block fails, as `Method` does, but without a copy.

        References suffice: `clear` drops the trained patch, and it is never written into again.
        """
        attributes = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).update(attributes)
            raise

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        for edit in edits:
            trained = self.begin() if self.trained is None else self.trained
            self.train(trained, edit, self._edits)
            self.trained = trained
            self._edits.append(edit)
            progress(1)

    def train(self, patch: Trained, edit: Edit, earlier: Sequence[Edit]) -> None:
        """Train a patch on one edit; if that is interrupted, its parameters are restored."""
        parameters = list(patch.parameters.values())
        before = [parameter.detach().clone() for parameter in parameters]
        try:
            self.trainer.train(patch, parameters, edit, earlier)
        except BaseException:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            raise

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the parameters in fp32, by name."""
        return ({} if self.trained is None else self.trained.state()), {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        self.clear()
        if edits:
            self.trained = self.begin()
            self.trained.load_state(tensors)
        self._edits = list(edits)


class ValueMatrixMethod(AdapterMethod):
    """An `AdapterMethod` whose patch replaces value matrices: that of `layer`, or every block's.

    Attributes:
        paths: the value matrices' full names.
    """

    def __init__(self, config: AdapterTrainerConfig, lm: LM) -> None:
        super().__init__(config, lm)
        layers = range(lm.architecture.n_layers) if config.layer is None else [config.layer]
        self.paths = [lm.architecture.value_path(layer) for layer in layers]
