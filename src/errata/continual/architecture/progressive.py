"""Progressive columns: each task has a column of its own, which also reads the earlier ones.

Rusu et al., arXiv 1606.04671: columns of earlier tasks are frozen, and a new column gets lateral
connections from their layers, so that it may use what they learned and cannot harm it.

What departs from the paper: a column is not a whole network but a bottleneck beside the value
matrix of each block: z_t = GELU(A_t k + U_t [z_0, ..., z_t-1]), k the matrix's input, and B_t z_t
is added to its output. Earlier columns' z are taken from the same k, so that one pass is enough;
there is none for the model itself, which every column stands on. What a column computes is no
matrix, so it cannot be merged into an ordinary model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import PositiveInt
from errata.continual.architecture.separate import Separate, SeparateSettings
from errata.lm.hooks import add_to_output
from errata.lm.weights import read_weight


@dataclass(frozen=True)
class ProgressiveSettings(SeparateSettings):
    """Settings of progressive columns.

    Attributes:
        width: of a column's bottlenecks.
    """

    width: PositiveInt = 32


class Progressive(Separate):
    """Trains a column for each task."""

    config_class = ProgressiveSettings
    paper = "arXiv 1606.04671"
    saves = False
    beside = True
    config: ProgressiveSettings

    def __init__(self, config: ProgressiveSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.columns: list[dict[str, Tensor]] = []
        lm = learner.lm
        self.places = {
            str(layer): lm.architecture.value_module(lm.model, layer)
            for layer in range(lm.architecture.n_layers)
        }

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The current task's column."""
        return self.columns[-1] if self.columns else {}

    def begin(self, items: Sequence[Any]) -> None:
        """Put up a new column, which changes nothing yet."""
        super().begin(items)
        width, earlier, column = self.config.width, len(self.columns), {}
        for layer, module in self.places.items():
            weight = read_weight(module)
            d_out, d_in = weight.shape
            for part, of in (("in", d_in), ("lateral", width * earlier)):
                noise = torch.rand(width, of, generator=self.generator) * 2 - 1
                column[f"{layer}.{part}"] = noise.to(weight) / math.sqrt(max(1, of))
            column[f"{layer}.out"] = weight.new_zeros(d_out, width)
        self.columns.append({name: each.requires_grad_() for name, each in column.items()})

    def loss(self, items: Sequence[Any]) -> Tensor:
        """Return the loss of the model with the task's column."""
        with self.at(self.task):
            return super().loss(items)

    @contextmanager
    def at(self, task: int | None) -> Iterator[None]:
        """Within a `with` block, have a task's column."""
        with ExitStack() as hooks:
            for layer, module in self.places.items() if task is not None else ():

                def extra(keys: Tensor, layer: str = layer) -> Tensor:
                    return self._said(keys, layer, task or 0)

                hooks.enter_context(add_to_output(module, extra))
            yield

    def _said(self, keys: Tensor, layer: str, task: int) -> Tensor:
        """Return what the column of a task adds at a layer, (..., d_out)."""
        states: list[Tensor] = []
        for column in self.columns[: task + 1]:
            state = keys @ column[f"{layer}.in"].T
            if states:
                state = state + torch.cat(states, -1) @ column[f"{layer}.lateral"].T
            states.append(F.gelu(state))
        return states[-1] @ self.columns[task][f"{layer}.out"].T

    def state(self) -> dict[str, Any]:
        """Return the columns."""
        columns = [
            {name: each.detach() for name, each in column.items()} for column in self.columns
        ]
        return {**super().state(), "columns": columns}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        super().load_state(state)
        self.columns = [dict(column) for column in state["columns"]]
