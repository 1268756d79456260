"""`StaticSpace`: what a question asks, from its tokens alone.

Folio compares states in the middle of the model. Where an engine shows none, a question is the mean
of its tokens' vectors, each of which is what the model makes of that token by itself; the subject's
are left out. The discriminants are Folio's, fitted on the same wordings (`question_space.py`,
`intents.py`); they are linear, so the exported vectors are projected already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ENDING = 4
"""Tokens of a question's end, which have a mean of their own."""


@dataclass(frozen=True)
class StaticSpace:
    """The projected vectors of a vocabulary's tokens, and how two questions are compared.

    Attributes:
        tokens: (views, vocabulary, dimensions), of all of a question and of its end.
        weights: (vocabulary,), how much a token counts in a mean.
        center: (views, dimensions), the wordings' mean.
        shared: (views, dimensions), see `QuestionSpace`.
        spread: (views,).
        boundary: the score is one half there.
        intents: (views, vocabulary, intents), what speaks for each intent, see `IntentClassifier`.
        bias: (intents,).
    """

    tokens: Array
    weights: Array
    center: Array
    shared: Array
    spread: Array
    boundary: float
    intents: Array
    bias: Array

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> StaticSpace:
        """Read a space from arrays by the names of its attributes."""
        names = [field.name for field in fields(cls) if field.name != "boundary"]
        found = {name: np.asarray(arrays[name], np.float32) for name in names}
        return cls(**found, boundary=float(arrays["boundary"]))

    def vector(self, ids: Sequence[int]) -> Array:
        """Return what tokens ask, (views, dimensions); in each view they have one length."""
        means = np.stack([
            self._mean(self.tokens[view], part) for view, part in enumerate(views_of(ids))
        ])  # fmt: skip
        found = means - self.center
        length = np.sqrt(np.square(found).mean(-1, keepdims=True))
        return np.asarray(found / np.maximum(length, 1e-6))

    def scores(self, one: Array, others: Array) -> Array:
        """Return how surely the same is asked, (n,) between 0 and 1.

        Args:
            one: (views, dimensions).
            others: (n, views, dimensions).
        """
        rest = 1 - np.square(self.shared)
        ratios = (
            (self.shared / rest * one * others).sum(-1)
            - (0.5 * np.square(self.shared) / rest * (np.square(one) + np.square(others))).sum(-1)
            - 0.5 * np.log(rest).sum(-1)
        )
        return np.asarray(1 / (1 + np.exp(self.boundary - (ratios / self.spread).sum(-1))))

    def intent_odds(self, ids: Sequence[int]) -> Array:
        """Return the log odds of each intent against the likeliest other one, (intents,)."""
        logits = self.bias + sum(
            self._mean(self.intents[view], part) for view, part in enumerate(views_of(ids))
        )
        best, second = np.sort(logits)[::-1][:2]
        return np.asarray(logits - np.where(logits == best, second, best))

    def _mean(self, vectors: Array, ids: Sequence[int]) -> Array:
        weights = self.weights[list(ids)]
        total = weights.sum()
        found = (weights[:, None] * vectors[list(ids)]).sum(0)
        return np.asarray(found / (total if total else 1.0))


def views_of(ids: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Return the tokens of a question's views: all of them, and those at its end."""
    return ids, ids[-ENDING:]
