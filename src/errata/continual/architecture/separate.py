"""`Separate`: the base of plug-ins whose tasks have weights of their own; which task is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from errata.continual.config import LearningConfig
from errata.continual.language import LanguageLearner
from errata.continual.plugin import Plugin
from errata.lm.encoding import Row


@dataclass(frozen=True)
class SeparateSettings(LearningConfig):
    """Settings of plug-ins whose tasks have weights of their own.

    Attributes:
        task: whose weights answer a prompt: `known`: those of the task that it is of, which is told
            (task-incremental learning); `found`: those of the task whose prompts' mean state is
            nearest, in the model before any task.
    """

    task: Literal["known", "found"] = "known"


class Separate(Plugin):
    """Keeps tasks apart, and finds whose a prompt is."""

    config_class: ClassVar[type[LearningConfig]] = SeparateSettings
    kind = "architecture"
    separate = True
    config: SeparateSettings
    learner: LanguageLearner

    def __init__(self, config: SeparateSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.means: list[Tensor] = []
        """(hidden,) of each task."""

    def end(self) -> None:
        """Keep the mean state of the task's prompts, where it may have to be found."""
        if self.config.task == "found":
            with self.at(None):
                states = self.learner.states([prompt_of(row) for row in self.tasks[-1]])
            self.means.append(states.mean(0))

    def asked(
        self, prompts: Sequence[Sequence[int]], task: int | None
    ) -> list[tuple[int | None, list[int]]]:
        """Return which task's weights answer which of some prompts, by their numbers."""
        if not self.means:
            return super().asked(prompts, task)
        with self.at(None):
            states = self.learner.states(prompts)
        near = torch.cdist(states, torch.stack(self.means)).argmin(1).tolist()
        return [
            (each, [place for place, found in enumerate(near) if found == each])
            for each in sorted(set(near))
        ]

    def state(self) -> dict[str, Any]:
        """Return the mean states."""
        return {"means": self.means}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.means = [each.cpu() for each in state["means"]]


def prompt_of(row: Row) -> tuple[int, ...]:
    """Return the tokens of a row's question; of a document all of it."""
    return row.ids[: row.prompt_length] if row.prompt_length > 1 else row.ids
