"""`RouterCalibration`: what Folio's router knows of text that no edit is about."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from errata.words.names import WordWeights


@dataclass(frozen=True)
class RouterCalibration:
    """Statistics of background text.

    Attributes:
        weights: words, weighted by how rare they are.
        center, scale: (hidden,), mean and standard deviation of the head's inputs.
        logit_scale: see `BaseHead.logit_scale`.
        threshold: score from which a leaf answers a prompt.
        reference_prompts: unrelated prompts; what the model predicts for all of them is generic.
    """

    weights: WordWeights
    center: Tensor
    scale: Tensor
    logit_scale: float
    threshold: float
    reference_prompts: tuple[str, ...] = ()

    def whiten(self, keys: Tensor) -> Tensor:
        """Return keys (..., hidden) centred, scaled and normalised to length 1, in fp32."""
        return F.normalize((keys.float() - self.center) / self.scale, dim=-1)
