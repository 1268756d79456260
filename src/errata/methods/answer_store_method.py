"""`AnswerStoreMethod`: the base of methods whose edits are stored answers, used near their prompts.

An edit is one forward pass, and taking it out a deletion. How near a prompt must be is measured on
self-generated text where it is not set.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from errata.config import MethodConfig, NonNegativeFloat, PositiveInt, Range
from errata.edit import Edit
from errata.lm.background import background_texts, open_prompt
from errata.lm.encoding import Batch, in_batches
from errata.methods.base import Method, Progress, no_progress
from errata.patches.answer_store import AnswerStore
from errata.storage import state

BATCH = 64
"""Background prompts that are read together."""


@dataclass(frozen=True)
class AnswerStoreConfig(MethodConfig):
    """Settings of every method whose edits are stored answers.

    Attributes:
        neighbours: k, how many stored tokens count at a token.
        radius: how far a prompt may be from an edit's for the store to be used; None: half the
            median distance between a self-generated prompt and its nearest.
        background: texts that the radius is measured on.
    """

    neighbours: PositiveInt = 16
    radius: NonNegativeFloat | None = None
    background: Annotated[int, Range(2)] = 64


class AnswerStoreMethod(Method):
    """A method whose edits are stored answers."""

    config: AnswerStoreConfig

    @property
    @abstractmethod
    def patch(self) -> AnswerStore:
        """The store."""

    @abstractmethod
    def contexts(self, batch: Batch) -> Tensor:
        """Return what the base model makes of the tokens so far, (batch, width, ...) in fp32."""

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, by a forward pass each."""
        self.measure()
        for edit in edits:
            batch = self.lm.batch([self.encode(edit)])
            rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
            self.patch.add(edit.id, self.contexts(batch)[rows, columns], labels.tolist())
            self._edits.append(edit)
            progress(1)

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self.patch.clear()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits."""
        removed = self.check_ids(edit_ids)
        for edit_id in removed:
            self.patch.drop(edit_id)
        self._edits = [edit for edit in self._edits if edit.id not in removed]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return contexts (n, ...) and tokens (n,) of all edits; the radius, once measured."""
        measured = not math.isnan(self.patch.radius)
        return self.patch.state(), {"radius": self.patch.radius} if measured else {}

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        self.patch.load_state([edit.id for edit in edits], tensors)
        measured = bool(edits or values)
        self.patch.radius = state.number(values, "radius", 0) if measured else math.nan
        self._edits = list(edits)

    def measure(self) -> None:
        """Set the radius to this model's scale, unless it is."""
        if math.isnan(self.patch.radius):
            radius = self.config.radius
            self.patch.radius = self._half_the_distance() if radius is None else radius

    def _half_the_distance(self) -> float:
        """Return half the median distance between a self-generated prompt and its nearest."""
        texts = background_texts(self.lm, self.config.background, seed=self.config.seed)
        prompts = sorted({open_prompt(text) for text in texts if text.strip()}) or ["x"]

        def contexts(part: list[str]) -> list[Tensor]:
            return list(self.contexts(self.lm.prompt_batch(part))[:, -1])

        last = torch.stack(in_batches(prompts, contexts, BATCH, size=len))
        distances = torch.cdist(last, last, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.fill_diagonal_(math.inf).min(-1).values
        alone = len(last) == 1
        return (last.norm() if alone else nearest[nearest.isfinite()].median()).item() / 2
