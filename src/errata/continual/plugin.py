"""`Plugin`: what keeps a model from forgetting earlier tasks while it learns the next one.

A plug-in has its say at a few points of the one training loop (`trainer.py`): it adds a *penalty*,
*samples* what a step sees, changes the *gradient* or the *step*, or brings parameters of its own.
One that changes nothing is plain fine-tuning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.continual.config import LearningConfig
from errata.continual.forward import Learner

Gradients = list[Tensor]
"""One for each parameter, in their order."""


class Plugin:
    """Plain fine-tuning, and the base of all plug-ins.

    Args:
        config: the settings.
        learner: the model that learns.

    Attributes:
        tasks: the examples of the tasks so far, the current one's last.
        separate: each task has weights of its own, so that `at` must say which task is asked.
        saves: what it answers with is an ordinary model, with other weights only.
        beside: the model's own weights stay as they are.
        takes: the kinds of tasks that it can learn.
    """

    config_class: ClassVar[type[LearningConfig]] = LearningConfig
    kind: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    separate: ClassVar[bool] = False
    saves: ClassVar[bool] = True
    beside: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = ("questions", "labels", "documents")

    def __init__(self, config: LearningConfig, learner: Learner) -> None:
        self.config, self.learner = config, learner
        self.tasks: list[Sequence[Any]] = []
        self.generator = torch.Generator()

    @property
    def task(self) -> int:
        """The number of the current task, from 0."""
        return len(self.tasks) - 1

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What is trained now, by name."""
        return self.learner.parameters

    # what happens in training, in this order

    def begin(self, items: Sequence[Any]) -> None:
        """Begin a task; all that is random in it follows from the seed and the task's number."""
        self.tasks.append(items)
        self.generator.manual_seed(self.config.seed * 1_000_003 + self.task)

    def sample(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return what a step learns from, given the examples whose turn it is."""
        return items

    def loss(self, items: Sequence[Any]) -> Tensor:
        """Return the loss that a step lowers, of what `sample` returned."""
        return self.learner.forward(items).losses.mean()

    def penalty(self) -> Tensor | None:
        """Return what is added to the loss for where the parameters are; None: nothing."""
        return None

    def gradient(self, gradients: Gradients, again: Callable[[], Gradients]) -> Gradients:
        """Return the gradient to go by.

        Args:
            gradients: of `loss`.
            again: computes them where the parameters are by then.
        """
        return gradients

    def step(self, change: Gradients, gradients: Gradients) -> Gradients:
        """Return the change of the parameters to make.

        Args:
            change: what the optimizer would make.
            gradients: of `loss`, before it.
        """
        return change

    def again(self) -> int:
        """Return for how many epochs the task goes on, once its epochs are over; called until 0."""
        return 0

    def end(self) -> None:
        """Keep what later tasks need of this one."""

    # what is kept of an interrupted run

    def state(self) -> dict[str, Any]:
        """Return what is carried from task to task: tensors and plain values, ready to be saved."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`; `tasks` has the tasks by then."""

    # what is asked

    def at(self, task: int | None) -> AbstractContextManager[None]:
        """Within a `with` block, let the model answer what a task asks; None: none was learned."""
        return contextlib.nullcontext()

    def asked(
        self, prompts: Sequence[Sequence[int]], task: int | None
    ) -> list[tuple[int | None, list[int]]]:
        """Return which task answers which of some prompts, by their numbers.

        Args:
            prompts: token ids.
            task: that they are of; None where it was not learned yet.
        """
        return [(task, list(range(len(prompts))))]

    def classify(self, texts: Sequence[str], labels: Sequence[str]) -> list[str] | None:
        """Return the label of each text; None: the likeliest answer is its label."""
        return None
