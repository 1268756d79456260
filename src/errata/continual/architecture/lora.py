"""A LoRA for each task, beside a model that stays as it is.

Hu et al., arXiv 2106.09685; one adapter for each task is the usual use of them. Nothing of a task
can be forgotten, and nothing be carried over; whose adapter answers must be known or found, see
`SeparateSettings`. Their models are written with the adapter merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from errata.config import PositiveInt
from errata.continual.architecture.low_rank import (
    LowRankPair,
    beside,
    drawn,
    from_named,
    merged,
    named,
)
from errata.continual.architecture.separate import Separate, SeparateSettings


@dataclass(frozen=True)
class LoraSettings(SeparateSettings):
    """Settings of a LoRA for each task.

    Attributes:
        rank: of each.
    """

    rank: PositiveInt = 8


class Lora(Separate):
    """Trains a LoRA for each task."""

    config_class = LoraSettings
    paper = "arXiv 2106.09685"
    beside = True
    config: LoraSettings

    def __init__(self, config: LoraSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.pairs: list[dict[str, LowRankPair]] = []

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The current task's LoRA."""
        return named(self.pairs[-1]) if self.pairs else {}

    def begin(self, items: Sequence[Any]) -> None:
        """Put a new LoRA beside the model."""
        super().begin(items)
        self.pairs.append(drawn(self.learner, self.config.rank, self.generator))

    def loss(self, items: Sequence[Any]) -> Tensor:
        """Return the loss of the model with the task's LoRA."""
        with beside(self.learner, self.pairs[-1:]):
            return super().loss(items)

    @contextmanager
    def at(self, task: int | None) -> Iterator[None]:
        """Within a `with` block, have a task's LoRA in the weights."""
        with merged(self.learner, [] if task is None else [self.pairs[task]]):
            yield

    def state(self) -> dict[str, Any]:
        """Return the LoRAs."""
        pairs = [{name: each.detach() for name, each in named(one).items()} for one in self.pairs]
        return {**super().state(), "pairs": pairs}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        super().load_state(state)
        self.pairs = [from_named(each) for each in state["pairs"]]
