"""What methods have in common that train parameters beside a frozen model, edit after edit:
settings, writing, state.
"""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.config import MethodConfig, check_range
from errata.edit import Edit
from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.methods.base import Method, Progress, no_progress
from errata.patches import Adapters, Patch, VirtualTokens, WeightDelta
from errata.solvers.adapters import AdapterTrainer

Trained = Adapters | VirtualTokens
"""A patch with parameters that a `AdapterTrainer` can teach."""


@dataclass(frozen=True)
class AdapterMethodConfig(MethodConfig):
    """Settings of every method that trains parameters beside a frozen model.

    Attributes:
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        kl: weight of KL(base || edited) on background texts; 0 for none.
        stop_loss: an edit is learned when its loss is below, and every token of its answer is the
            model's choice.
        prefixes, prefix_length: texts of the model's own making put before the prompt while
            learning.
        rehearse: earlier edits seen again at each step.
        background: texts of the model's own making.
        batch: so many of them are held, drawn for each edit.
    """

    steps: int = 70
    lr: float = 5e-3
    kl: float = 1.0
    stop_loss: float = 0.05
    prefixes: int = 2
    prefix_length: int = 10
    rehearse: int = 0
    background: int = 256
    batch: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "prefix_length", "background", "batch"):
            check_range(name, getattr(self, name), 1, math.inf)
        for name in ("lr", "kl", "stop_loss", "prefixes", "rehearse"):
            check_range(name, getattr(self, name), 0, math.inf)


class AdapterMethod(Method):
    """A method that trains parameters beside a frozen model, on one edit after another.

    Args:
        config: the method's settings.
        lm: the base model without patches.
        room: tokens of the context that the patch takes for itself.
    """

    phase = "association"
    undo_is = "exact, by writing the whole ledger anew"

    def __init__(self, config: AdapterMethodConfig, lm: LM, room: int = 0) -> None:
        super().__init__(config, lm)
        self.tutor = AdapterTrainer(
            lm,
            steps=config.steps,
            lr=config.lr,
            kl=config.kl,
            stop_loss=config.stop_loss,
            prefixes=config.prefixes,
            prefix_length=config.prefix_length,
            rehearse=config.rehearse,
            background=config.background,
            batch=config.batch,
            seed=config.seed,
            room=room,
        )
        self.trained: Trained | None = None
        self._nothing = WeightDelta({})

    @abstractmethod
    def begin(self) -> Trained:
        """The patch before its first edit, on the base model alone; it follows from the config."""

    @property
    def patch(self) -> Patch:
        """What was trained; nothing before the first edit."""
        return self._nothing if self.trained is None else self.trained

    def check(self, edits: Sequence[Edit]) -> None:
        """Make sure that edits can be written.

        Raises:
            PromptTooLongError: one leaves no room for the virtual tokens, on a model that counts
                them.
        """
        super().check(edits)
        room, limit = self.tutor.room, self.lm.context_length
        for edit in edits if room and limit else ():
            if (length := len(self.lm.encode(edit.prompt, edit.target, ".").ids)) + room > limit:
                raise PromptTooLongError(
                    f"the prompt {edit.prompt[:40]!r} with its answer takes {length} tokens and {self.config.method} {room} "
                    f"more; this model's context is {limit}. Shorten the prompt, or give fewer tokens."
                )

    def clear(self) -> None:
        """Forget all edits."""
        self.trained = None
        self._edits = []

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """As every method; nothing is asked of the model, for what `clear` lets go of is never
        written into again.
        """
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, one after another."""
        for edit in edits:
            trained = self.begin() if self.trained is None else self.trained
            self.teach(trained, edit, self._edits)
            self.trained = trained
            self._edits.append(edit)
            progress(1)

    def teach(self, trained: Trained, edit: Edit, earlier: Sequence[Edit]) -> None:
        """Teach one edit; whatever breaks it off leaves the parameters as they were."""
        parameters = list(trained.parameters.values())
        before = [parameter.detach().clone() for parameter in parameters]
        try:
            self.tutor.teach(trained, parameters, edit, earlier)
        except BaseException:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            raise

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The parameters in fp32, by name."""
        return ({} if self.trained is None else self.trained.state()), {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        self.clear()
        if edits:
            self.trained = self.begin()
            self.trained.load_state(tensors)
        self._edits = list(edits)
