"""`RouterCalibration`: what Folio's router knows of the base model before the first edit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from errata.methods.association.folio.question_space import QuestionSpace
from errata.words.names import WordWeights


@dataclass(frozen=True)
class RouterCalibration:
    """Statistics of background text, and the space that questions are compared in.

    Attributes:
        weights: words, weighted by how rare they are.
        center, scale: (hidden,), mean and standard deviation of the head's inputs.
        logit_scale: see `BaseHead.logit_scale`.
        space: where prompts are compared by what they ask.
        threshold: score from which a leaf answers a prompt.
        generic: tokens that the base model begins many an answer with, whatever is asked.
    """

    weights: WordWeights
    center: Tensor
    scale: Tensor
    logit_scale: float
    space: QuestionSpace
    threshold: float
    generic: frozenset[int] = frozenset()

    def whiten(self, keys: Tensor) -> Tensor:
        """Return keys (..., hidden) centred, scaled and normalised to length 1, in fp32."""
        return F.normalize((keys.float() - self.center) / self.scale, dim=-1)
