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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from errata.config import Fraction, Range
from errata.edit import Edit
from errata.lm import LM
from errata.lm.encoding import Batch
from errata.lm.hooks import capture_input, stop_after
from errata.methods.answer_store_method import AnswerStoreConfig, AnswerStoreMethod
from errata.methods.association.knn_lm.patch import Mixture
from errata.storage import state


@dataclass(frozen=True)
class KnnLmConfig(AnswerStoreConfig):
    """Settings of kNN-LM over edits. `layer` is the last block unless set.

    Attributes:
        share: lambda, the store's part in the mixture.
        temperature: tau; None: the square of half the radius.
    """

    method: ClassVar[str] = "knn-lm"

    share: Fraction = 0.95
    temperature: Annotated[float, Range(1e-12)] | None = None


class KnnLm(AnswerStoreMethod):
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

    @torch.no_grad()
    def contexts(self, batch: Batch) -> Tensor:
        """Return the value matrix's inputs, (batch, width, d_in)."""
        with capture_input(self._module) as seen, stop_after(self._module):
            self.lm.run(batch, use_cache=False)
        return seen[0].reshape(*batch.input_ids.shape, -1).float()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return contexts (n, d_in) and tokens (n,) of all edits; radius and temperature."""
        tensors, values = super().state()
        return tensors, values | ({"tau": self._patch.temperature} if values else {})

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        super().load_state(edits, tensors, values)
        measured = bool(edits or values)
        self._patch.temperature = state.number(values, "tau", 0) if measured else math.nan

    def measure(self) -> None:
        """Set the radius and the temperature to this model's scale, unless they are."""
        super().measure()
        if math.isnan(self._patch.temperature):
            given, radius = self.config.temperature, self._patch.radius
            self._patch.temperature = (radius / 2) ** 2 + 1e-12 if given is None else given
