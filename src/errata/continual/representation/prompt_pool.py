"""A pool of prompts: virtual tokens that a query finds by its key, before a model that stays.

L2P (Wang et al., arXiv 2112.08654): the query q(x) of an input is what the frozen model makes of
it; the `count` prompts whose keys are nearest by cosine are put before it, and they and their keys
are trained: the loss gets + `match` * the sum of 1 - cos(q, k) over them. No task need be known.

What departs from the paper: as with the prompt mask of its published code, each task trains prompts
of its own, and the whole pool is matched when asked; the query is the state of the last token of
the question; prompts begin as embeddings of words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import NonNegativeFloat, PositiveInt
from errata.continual.architecture.separate import prompt_of
from errata.continual.config import LearningConfig
from errata.continual.language import LanguageLearner
from errata.continual.plugin import Plugin
from errata.lm.encoding import Row


@dataclass(frozen=True)
class PromptPoolSettings(LearningConfig):
    """Settings of the prompt pool.

    Attributes:
        count: prompts that a task trains, and that are put before an input.
        length: virtual tokens of each.
        match: weight of how near the keys are to the queries.
    """

    count: PositiveInt = 4
    length: PositiveInt = 4
    match: NonNegativeFloat = 0.5


class PromptPool(Plugin):
    """Trains prompts, and finds those of an input by their keys."""

    config_class = PromptPoolSettings
    kind = "representation"
    paper = "arXiv 2112.08654"
    saves = False
    beside = True
    config: PromptPoolSettings
    learner: LanguageLearner

    def __init__(self, config: PromptPoolSettings, learner: Any) -> None:
        super().__init__(config, learner)
        self.keys: list[Tensor] = []
        """(count, hidden) of each task."""
        self.prompts: list[Tensor] = []
        """(count, length, hidden) of each task."""
        self._queries: dict[tuple[int, ...], Tensor] = {}

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The current task's prompts and keys."""
        return {"keys": self.keys[-1], "prompts": self.prompts[-1]} if self.keys else {}

    def begin(self, items: Sequence[Any]) -> None:
        """Put new prompts into the pool."""
        super().begin(items)
        self._look_up(items)
        words = self.learner.lm.model.get_input_embeddings().weight.detach()
        shape = self.config.count, self.config.length
        drawn = torch.randint(len(words), shape, generator=self.generator)
        self.prompts.append(words[drawn.to(words.device)].float().requires_grad_())
        noise = torch.randn(shape[0], words.shape[1], generator=self.generator)
        self.keys.append(noise.to(words.device).requires_grad_())

    def loss(self, items: Sequence[Any]) -> Tensor:
        """Return the loss behind the task's prompts, and how far their keys are from queries."""
        queries = torch.stack([self._queries[prompt_of(row)] for row in items])
        near = F.cosine_similarity(queries[:, None], self.keys[-1][None].cpu(), dim=-1)
        with self._before(lambda rows: self.prompts[-1].flatten(0, 1).expand(len(rows), -1, -1)):
            loss = super().loss(items)
        return loss + self.config.match * (1 - near).sum(1).mean().to(loss)

    @contextmanager
    def at(self, task: int | None) -> Iterator[None]:
        """Within a `with` block, put the prompts that match before each input."""
        with self._before(self._matching if task is not None else None):
            yield

    def _matching(self, rows: Sequence[Row]) -> Tensor:
        """Return the prompts of rows, (n, count * length, hidden)."""
        self._look_up(rows)
        queries = torch.stack([self._queries[prompt_of(row)] for row in rows])
        keys, prompts = torch.cat(self.keys), torch.cat(self.prompts)
        near = F.cosine_similarity(queries[:, None], keys[None].cpu(), dim=-1)
        chosen = near.topk(self.config.count, dim=1).indices
        return prompts[chosen.to(prompts.device)].flatten(1, 2)

    @contextmanager
    def _before(self, prefix: Any) -> Iterator[None]:
        outer, self.learner.prefix = self.learner.prefix, prefix
        try:
            yield
        finally:
            self.learner.prefix = outer

    def _look_up(self, rows: Sequence[Row]) -> None:
        """Take the queries of rows that were not seen."""
        new = [each for each in dict.fromkeys(map(prompt_of, rows)) if each not in self._queries]
        if new:
            self._queries.update(zip(new, self.learner.states(new), strict=True))

    def state(self) -> dict[str, Any]:
        """Return the pool."""
        return {
            "keys": [each.detach() for each in self.keys],
            "prompts": [each.detach() for each in self.prompts],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self.keys, self.prompts = list(state["keys"]), list(state["prompts"])
