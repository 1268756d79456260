"""`EditorTraining`: Adam over examples, for the methods that need it. It stops anywhere and goes on
as if it never had.

What a step draws follows from the seed and the step's number alone, and Adam's moments are part of
the state until the last step is made. What is learned, and by which loss, is the methods' affair.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from errata.edit import Example
from errata.errors import ConfigError, EditError
from errata.storage import state

Loss = Callable[[Example, random.Random], Tensor]
"""The loss of one example; whatever is drawn in it comes from the generator given."""


def check_examples(
    method: str, examples: Sequence[Example], *needed: Literal["rephrases", "others"]
) -> None:
    """Make sure that there is something to learn from.

    Args:
        method: who learns.
        needed: what it needs of each example beside the edit.

    Raises:
        EditError: there are no examples, or one lacks something.
    """
    if not examples:
        raise EditError(f"{method} is trained on examples; there are none.")
    for example in examples:
        for name in needed:
            if not getattr(example, name):
                asked = example.edit.prompt
                raise EditError(
                    f"{method} learns from {_SAID[name]}; {asked!r} has none: give the field '{_FIELD[name]}'."
                )


_SAID = {
    "rephrases": "rephrasings of each edit",
    "others": "other prompts, whose answers must stay",
}
_FIELD = {"rephrases": "rephrases", "others": "locality"}


class EditorTraining:
    """Trains parameters for a number of steps, each on a few examples, one after another.

    Args:
        parameters: what is trained, by name.
        rates: their learning rates, by the same names.
        steps: how many steps make the whole training.
        batch: examples per step; their losses are averaged.
        clip: largest norm of all gradients together.
        seed: what each step draws follows from it.

    Attributes:
        made: steps made so far.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        rates: Mapping[str, float],
        steps: int,
        batch: int,
        clip: float,
        seed: int,
    ) -> None:
        self.parameters = dict(parameters)
        self.steps = steps
        self.batch = batch
        self.clip = clip
        self.seed = seed
        self.made = 0
        self._learned_from = ""
        self._adam = torch.optim.Adam(
            [{"params": [p], "lr": rates[name]} for name, p in self.parameters.items()]
        )

    @property
    def left(self) -> int:
        """Steps still to be made."""
        return self.steps - self.made

    def run(self, examples: Sequence[Example], loss: Loss, progress: Callable[[int], None]) -> None:
        """Make the steps that are left; `progress(1)` is called after each, when `state` is whole.

        Raises:
            ConfigError: the training was begun with other examples.
        """
        if not self.left:
            return
        digest = hashlib.sha256(repr(list(examples)).encode()).hexdigest()[:16]
        if self.made and digest != self._learned_from:
            raise ConfigError(
                f"this training was begun with other examples, {self.made} of {self.steps} steps ago; give the same again, "
                "or begin another in another folder."
            )
        self._learned_from = digest
        while self.left:
            rng = random.Random(f"{self.seed} {self.made}")
            self._adam.zero_grad()
            for example in rng.choices(examples, k=self.batch):
                (loss(example, rng) / self.batch).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
            self._adam.step()
            self.made += 1
            progress(1)
        self._adam.zero_grad()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(Adam's moments by parameter, while steps are left; plain values). The parameters are
        their owner's to save.
        """
        moments: dict[str, Tensor] = {}
        if self.made and self.left:
            for name, parameter in self.parameters.items():
                for moment in _MOMENTS:
                    moments[f"adam.{moment}.{name}"] = (
                        self._adam.state[parameter][moment].cpu().clone()
                    )
        return moments, {"training_steps_made": self.made, "learned_from": self._learned_from}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Be what `state` described.

        Raises:
            KeyError, ValueError: something is missing or of the wrong shape.
        """
        self.made = state.whole(
            state.value(values, "training_steps_made", int), "training_steps_made", 0, self.steps
        )
        self._learned_from = state.value(values, "learned_from", str)
        self._adam.state.clear()
        if not (self.made and self.left):
            return
        for name, parameter in self.parameters.items():
            kept = {
                moment: state.tensor(tensors, f"adam.{moment}.{name}", parameter.shape)
                for moment in _MOMENTS
            }
            self._adam.state[parameter] = {
                "step": torch.tensor(float(self.made)),
                **{name: moment.clone().to(parameter) for name, moment in kept.items()},
            }


_MOMENTS = ("exp_avg", "exp_avg_sq")
