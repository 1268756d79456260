"""kNN-LM over edits: the answers of all edits are a store of (context, next token), whose vote is
mixed into the output.

Khandelwal et al., "Generalization through Memorization: Nearest Neighbor Language Models", ICLR
2020, arXiv 1911.00172: p = lambda p_kNN + (1 - lambda) p_LM, p_kNN(w) ~ the sum of exp(-d^2 / tau)
over those of the k nearest contexts that had w behind them.

What departs from the paper, where the store is not a corpus but what the model gets wrong:

- The store is asked only behind prompts within `radius` of an edit's own, decided once for the
  whole answer: what is not edited stays the base model's, bit for bit.
- lambda is .95 (there .25): with less than a half a store cannot contradict a model that is sure of
  itself, which is what an edit is for. k is 16 (there 1,024 of a hundred million): an edit has a
  handful of tokens.
- The context is what the last feed-forward network's value matrix reads (there: what the network
  reads). With a setting of `layer`, that of another block.
- tau (there 1 at first, then 10) belongs to the scale of the contexts, as the radius does: both are
  measured on background text of the model's own making.
- The answer's end is stored too.

Nothing is trained, and no edit's part depends on another's: an edit is one pass of the model, its
undo is a deletion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from errata.config import MethodConfig, check_range
from errata.edit import Edit
from errata.lm import LM
from errata.lm.background import background_texts, open_prompt
from errata.lm.encoding import Batch
from errata.lm.hooks import capture_input
from errata.methods.association.knn_lm.patch import Mixture
from errata.methods.base import Method, Progress, no_progress
from errata.storage import state


@dataclass(frozen=True)
class KnnLmConfig(MethodConfig):
    """Settings of kNN-LM over edits. `layer` is the last block unless set.

    Attributes:
        share: lambda, the store's part in the mixture.
        neighbours: k, how many vote.
        radius: how far a prompt may be from an edit's for the store to be asked; None: half of how
            far prompts of the model's own making are from their nearest (the median).
        temperature: tau; None: the square of half the radius.
        background: texts that the radius is measured on.
    """

    method: ClassVar[str] = "knn-lm"

    share: float = 0.95
    neighbours: int = 16
    radius: float | None = None
    temperature: float | None = None
    background: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("share", self.share, 0, 1)
        check_range("neighbours", self.neighbours, 1, math.inf)
        check_range("background", self.background, 2, math.inf)
        if self.radius is not None:
            check_range("radius", self.radius, 0, math.inf)
        if self.temperature is not None:
            check_range("temperature", self.temperature, 1e-12, math.inf)


class KnnLm(Method):
    """kNN-LM over edits: stored answers vote for the next token where a prompt is near an edited
    one.
    """

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
        """Add edits: a pass of the model each."""
        if math.isnan(self._patch.radius):
            self._measure()
        for edit in edits:
            batch = self.lm.batch(
                [
                    self.lm.encode(
                        edit.prompt, edit.target, self.lm.ending_of(edit.prompt, edit.target)
                    )
                ]
            )
            rows, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
            self._patch.add(edit.id, self._contexts(batch)[rows, columns], labels.tolist())
            self._edits.append(edit)
            progress(1)

    def clear(self) -> None:
        """Forget all edits."""
        self._edits = []
        self._patch.clear()

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Take edits back."""
        gone = self.check_ids(edit_ids)
        for name in gone:
            self._patch.drop(name)
        self._edits = [edit for edit in self._edits if edit.id not in gone]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Contexts (n, d_in) and tokens (n,) of all edits, in their order; the radius and the
        temperature.
        """
        measured = (
            {}
            if math.isnan(self._patch.radius)
            else {"radius": self._patch.radius, "tau": self._patch.temperature}
        )
        return self._patch.state(), measured

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        self._patch.load_state([edit.id for edit in edits], tensors)
        measured = bool(edits or values)
        self._patch.radius = state.number(values, "radius", 0) if measured else math.nan
        self._patch.temperature = state.number(values, "tau", 0) if measured else math.nan
        self._edits = list(edits)

    @torch.no_grad()
    def _contexts(self, batch: Batch) -> Tensor:
        """Contexts (batch, width, d_in)."""
        with capture_input(self._module) as seen:
            self.lm.run(batch)
        return seen[0].reshape(*batch.input_ids.shape, -1).float()

    def _measure(self) -> None:
        """Set the radius and the temperature to this model's scale."""
        radius, temperature = self.config.radius, self.config.temperature
        if radius is None:
            texts = background_texts(
                self.lm, self.config.background, 24, seed=self.config.seed, shortest=4
            )
            prompts = sorted({open_prompt(text) for text in texts if text.strip()})
            last = torch.cat(
                [
                    self._contexts(self.lm.prompt_batch([prompt]))[:, -1]
                    for prompt in prompts or ["x"]
                ]
            )
            apart = torch.cdist(
                last, last, compute_mode="donot_use_mm_for_euclid_dist"
            ).fill_diagonal_(math.inf)
            nearest = apart.min(-1).values
            radius = (
                nearest[nearest.isfinite()].median().item() / 2
                if len(last) > 1
                else last.norm().item() / 2
            )
        self._patch.radius = radius
        self._patch.temperature = (radius / 2) ** 2 + 1e-12 if temperature is None else temperature
