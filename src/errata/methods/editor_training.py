"""`EditorTraining`: trains parameters by Adam over examples; an interruption leaves no trace.

What a step draws follows from the seed and the step's number alone, and Adam's moments are part of
the state until the last step is made. The parameters and the loss are given by the methods.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from errata.config import MethodConfig, NonNegativeFloat, PositiveInt
from errata.edit import Example
from errata.errors import ConfigError, EditError
from errata.storage import state

Loss = Callable[[Example, random.Random], Tensor]
"""The loss of one example, a scalar; the generator given is the only source of randomness."""

_NEEDS = {
    "rephrases": ("rephrasings of each edit", "rephrases"),
    "others": ("other prompts, whose answers must stay", "locality"),
}
"""Attribute of an example -> (what it holds, the field of a case that it is read from)."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class EditorTrainingConfig(MethodConfig):
    """Settings of every method that is trained before it edits.

    Attributes:
        training_steps: Adam steps of the whole training.
        batch: examples per step; their losses are averaged.
        clip: largest norm of all gradients of a step together.
    """

    training_steps: PositiveInt = 1000
    batch: PositiveInt = 10
    clip: NonNegativeFloat = 100.0


def check_examples(
    method: str, examples: Sequence[Example], *needed: Literal["rephrases", "others"]
) -> None:
    """Make sure that a method can be trained on examples.

    Args:
        method: the method's name.
        needed: what it needs of each example in addition to the edit.

    Raises:
        EditError: there are no examples, or one lacks something.
    """
    if not examples:
        raise EditError(f"{method} is trained on examples; there are none.")
    for example in examples:
        for name in needed:
            if not getattr(example, name):
                meaning, field = _NEEDS[name]
                raise EditError(
                    f"{method} learns from {meaning}; {example.edit.prompt!r} has none: "
                    f"give the field '{field}'."
                )


class EditorTraining:
    """Trains parameters for a number of steps, each on a few examples, one after another.

    Args:
        parameters: the parameters to train, by name.
        rates: their learning rates, by the same names.
        config: the settings of the training.

    Attributes:
        steps_made: steps made so far.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        rates: Mapping[str, float],
        config: EditorTrainingConfig,
    ) -> None:
        self.parameters = dict(parameters)
        self.config = config
        self.steps_made = 0
        self._examples_digest = ""
        self._adam = torch.optim.Adam(
            [{"params": [p], "lr": rates[name]} for name, p in self.parameters.items()]
        )

    @property
    def steps_left(self) -> int:
        """Steps still to be made."""
        return self.config.training_steps - self.steps_made

    def run(self, examples: Sequence[Example], loss: Loss, progress: Callable[[int], None]) -> None:
        """Make the steps that are left; `progress(1)` is called after each, when `state` is whole.

        Raises:
            ConfigError: the training was begun with other examples.
        """
        if not self.steps_left:
            return
        digest = hashlib.sha256(repr(list(examples)).encode()).hexdigest()[:16]
        if self.steps_made and digest != self._examples_digest:
            raise ConfigError(
                f"this training was begun with other examples, {self.steps_made} of "
                f"{self.config.training_steps} steps ago; give the same again, or begin another in "
                "another folder."
            )
        self._examples_digest = digest
        while self.steps_left:
            rng = random.Random(f"{self.config.seed} {self.steps_made}")
            for parameter in self.parameters.values():  # each has a gradient, reached or not
                parameter.grad = torch.zeros_like(parameter)
            for example in rng.choices(examples, k=self.config.batch):
                (loss(example, rng) / self.config.batch).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip)
            self._adam.step()
            self.steps_made += 1
            progress(1)
        self._adam.zero_grad()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (Adam's moments by parameter, while steps are left; plain values).

        The parameters are saved by their owner.
        """
        moments: dict[str, Tensor] = {}
        if self.steps_made and self.steps_left:
            moments = {
                f"adam.{moment}.{name}": self._adam.state[parameter][moment].cpu().clone()
                for name, parameter in self.parameters.items()
                for moment in _MOMENTS
            }
        values = {
            "training_steps_made": self.steps_made,
            "learned_from": self._examples_digest,
        }
        return moments, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore from `state()`.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """
        name, steps = "training_steps_made", self.config.training_steps
        self.steps_made = state.whole(state.value(values, name, int), name, 0, steps)
        self._examples_digest = state.value(values, "learned_from", str)
        self._adam.state.clear()
        if not (self.steps_made and self.steps_left):
            return
        for name, parameter in self.parameters.items():
            moments = {
                moment: state.tensor(tensors, f"adam.{moment}.{name}", parameter.shape)
                for moment in _MOMENTS
            }
            self._adam.state[parameter] = {
                "step": torch.tensor(float(self.steps_made)),
                **{moment: tensor.clone().to(parameter) for moment, tensor in moments.items()},
            }
