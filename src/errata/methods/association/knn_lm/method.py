"""kNN-LM over edits: the answers of all edits are a store of (context, next token), which votes.

Khandelwal et al., "Generalization through Memorization: Nearest Neighbor Language Models", ICLR
2020, arXiv 1911.00172: p = lambda p_kNN + (1 - lambda) p_LM, p_kNN(w) ~ the sum of exp(-d^2 / tau)
over those of the k nearest contexts that were followed by w.

What departs from the paper, where the store is a corpus and not what the model gets wrong:

- The store is used only for prompts within `radius` of an edit's own, decided once for the whole
  answer: what is not edited stays the base model's, bit for bit.
- lambda is .95 (there .25): with less than a half a store cannot contradict a model that is sure of
  itself, which is what an edit is for. k is 16 (there 1,024 of a hundred million): an edit has a
  handful of tokens.
- The context is the input of the last feed-forward network's value matrix (there: of the network).
  With a setting of `layer`, of that block's.
- tau (there 1 at first, then 10) depends on the scale of the contexts, as the radius does: both are
  measured on self-generated text.
- The answer's end is stored too.

Nothing is trained, and the edits are independent: an edit is one forward pass, its undo a deletion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from errata.config import Fraction, MethodConfig, NonNegativeFloat, PositiveInt, Range
from errata.edit import Edit
from errata.lm import LM
from errata.lm.background import background_texts, open_prompt
from errata.lm.encoding import Batch, in_batches
from errata.lm.hooks import capture_input, stop_after
from errata.methods.association.knn_lm.patch import Mixture
from errata.methods.base import Method, Progress, no_progress
from errata.storage import state

BATCH = 64
"""Background prompts that are read together."""


@dataclass(frozen=True)
class KnnLmConfig(MethodConfig):
    """Settings of kNN-LM over edits. `layer` is the last block unless set.

    Attributes:
        share: lambda, the store's part in the mixture.
        neighbours: k, how many vote.
        radius: how far a prompt may be from an edit's for the store to be used; None: half the
            median distance between a self-generated prompt and its nearest.
        temperature: tau; None: the square of half the radius.
        background: texts that the radius is measured on.
    """

    method: ClassVar[str] = "knn-lm"

    share: Fraction = 0.95
    neighbours: PositiveInt = 16
    radius: NonNegativeFloat | None = None
    temperature: Annotated[float, Range(1e-12)] | None = None
    background: Annotated[int, Range(2)] = 64


class KnnLm(Method):
    """kNN-LM over edits: near an edited prompt, stored answers vote for the next token."""

    config_class = KnnLmConfig
    phase = "association"
    undo_is = "exact, by deleting the edit's contexts"
    paper = "arXiv 1911.00172"
    config: KnnLmConfig

    def __init__(self, config: KnnLmConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self.layer = lm.architecture.n_layers - 1 if config.layer is None else config.layer
        path = lm.architecture.value_path(self.layer)
        self._module = lm.model.get_submodule(path)
        self._patch = Mixture(lm, path, math.nan, math.nan, config.share, config.neighbours)

    @property
    def patch(self) -> Mixture:
        """The store."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits, by a forward pass each."""
        if math.isnan(self._patch.radius):
            self._measure_background()
        for edit in edits:
            batch = self.lm.batch([self.encode(edit)])
            rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
            self._patch.add(edit.id, self._contexts(batch)[rows, columns], labels.tolist())
            self._edits.append(edit)
            progress(1)

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self._patch.clear()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove edits."""
        removed = self.check_ids(edit_ids)
        for edit_id in removed:
            self._patch.drop(edit_id)
        self._edits = [edit for edit in self._edits if edit.id not in removed]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return contexts (n, d_in) and tokens (n,) of all edits; radius and temperature."""
        patch = self._patch
        measured = not math.isnan(patch.radius)
        values = {"radius": patch.radius, "tau": patch.temperature} if measured else {}
        return patch.state(), values

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        self._patch.load_state([edit.id for edit in edits], tensors)
        measured = bool(edits or values)
        self._patch.radius = state.number(values, "radius", 0) if measured else math.nan
        self._patch.temperature = state.number(values, "tau", 0) if measured else math.nan
        self._edits = list(edits)

    @torch.no_grad()
    def _contexts(self, batch: Batch) -> Tensor:
        """Return contexts (batch, width, d_in)."""
        with capture_input(self._module) as seen, stop_after(self._module):
            self.lm.run(batch, use_cache=False)
        return seen[0].reshape(*batch.input_ids.shape, -1).float()

    def _measure_background(self) -> None:
        """Set the radius and the temperature to this model's scale."""
        radius, temperature = self.config.radius, self.config.temperature
        if radius is None:
            texts = background_texts(self.lm, self.config.background, seed=self.config.seed)
            prompts = sorted({open_prompt(text) for text in texts if text.strip()}) or ["x"]

            def contexts(part: list[str]) -> list[Tensor]:
                return list(self._contexts(self.lm.prompt_batch(part))[:, -1])

            last = torch.stack(in_batches(prompts, contexts, BATCH, size=len))
            distances = torch.cdist(last, last, compute_mode="donot_use_mm_for_euclid_dist")
            nearest = distances.fill_diagonal_(math.inf).min(-1).values
            alone = len(last) == 1
            radius = (last.norm() if alone else nearest[nearest.isfinite()].median()).item() / 2
        self._patch.radius = radius
        self._patch.temperature = (radius / 2) ** 2 + 1e-12 if temperature is None else temperature
