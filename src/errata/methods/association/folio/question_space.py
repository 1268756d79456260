"""`QuestionSpace`: what prompts ask, as vectors that are alike where the same thing is asked.

The base model's state at the last token of a wording, in the middle of its blocks, says much about
the subject and the form, and something about what is asked. A linear discriminant keeps the last:
fitted on wordings of many relations about changing subjects (`wordings.jsonl`), it drops what
differs among wordings of one relation, and keeps what differs between relations. Two prompts are
compared by how much likelier their vectors are if one thing is asked than if two are (Ioffe,
"Probabilistic Linear Discriminant Analysis", ECCV 2006); no gradient and no label of a benchmark
has a part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DIMENSIONS = 64
"""Of a vector, at most."""
RIDGE = 1.0
"""Of the within-relation variance, in units of its mean."""
FOLDS = 3
"""Parts of the relations, each compared in a space that was fitted without it."""


@dataclass(frozen=True)
class QuestionSpace:
    """Where prompts are compared by what they ask.

    Attributes:
        center: (hidden,), the wordings' mean state.
        projection: (hidden, dimensions); it scales states too, so that vectors vary by 1.
        shared: (dimensions,), the share of that variance that wordings of one relation have in
            common, between 0 and 1.
        boundary: the log likelihood ratio from which a score is above one half.
        spread: standard deviation of that ratio where different things are asked; its unit.
    """

    center: Tensor
    projection: Tensor
    shared: Tensor
    boundary: float
    spread: float

    def vectors(self, states: Tensor) -> Tensor:
        """Project states (n, hidden) to vectors (n, dimensions) of one length, in fp32."""
        found = (states.float() - self.center) @ self.projection
        return found / found.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)

    def ratios(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the log likelihood ratio of one question to two, of vectors (..., dimensions)."""
        # In each dimension: variance 1, and a covariance of `shared` against none.
        rest = 1 - self.shared.square()
        return (
            (self.shared / rest * one * other).sum(-1)
            - (0.5 * self.shared.square() / rest * (one.square() + other.square())).sum(-1)
            - 0.5 * rest.log().sum()
        )

    def scores(self, one: Tensor, other: Tensor) -> Tensor:
        """Return scores between 0 and 1 of vectors (..., dimensions); one half at the boundary."""
        return ((self.ratios(one, other) - self.boundary) / self.spread).sigmoid()


def fit_space(
    states: Tensor, relations: Sequence[int], kinds: Sequence[str], false: float
) -> QuestionSpace:
    """Fit a space on wordings.

    Args:
        states: (n, hidden), of the wordings.
        relations: what each wording asks.
        kinds: what each wording's subject is; relations of other kinds are told apart by that.
        false: the share of pairs of wordings of different relations about one kind of subject that
            may score above one half, where neither relation was fitted on.
    """
    labels = torch.tensor(relations)
    same_kind = torch.tensor([[one == other for other in kinds] for one in kinds])
    ratios = []
    for fold in range(FOLDS):
        held = labels % FOLDS == fold
        space = _fitted(states[~held], labels[~held])
        vectors = space.vectors(states[held])
        alike = same_kind[held][:, held] & (labels[held][:, None] != labels[held][None])
        ratios.append(space.ratios(vectors[:, None], vectors[None])[alike])
    found = torch.cat(ratios).sort().values
    if not len(found):  # no two relations about one kind of subject
        return _fitted(states, labels)
    place = min(len(found) - 1, int((1 - false) * len(found)))
    space = _fitted(states, labels)
    return replace(space, boundary=float(found[place]), spread=max(float(found.std()), 1e-3))


def _fitted(states: Tensor, labels: Tensor) -> QuestionSpace:
    states, labels = states.double(), torch.unique(labels, return_inverse=True)[1]
    center, scale = states.mean(0), states.std(0).clamp(min=1e-6)
    scaled = (states - center) / scale
    axes = torch.eye(scaled.shape[1], dtype=scaled.dtype)
    if len(scaled) < len(axes):  # nothing is lost in the space that so few wordings span
        axes = torch.linalg.svd(scaled, full_matrices=False)[2]
    seen = scaled @ axes.T
    counts = torch.bincount(labels)
    means = torch.zeros(len(counts), seen.shape[1], dtype=seen.dtype)
    means = means.index_add(0, labels, seen) / counts[:, None]
    apart = seen - means[labels]
    within = apart.T @ apart / (len(seen) - len(counts))
    between = (means.T @ means) / len(counts) - within / counts.double().mean()
    ridge = RIDGE * within.diagonal().sum() / scaled.shape[1]
    values, vectors = torch.linalg.eigh(within + ridge * torch.eye(len(within), dtype=seen.dtype))
    whitener = vectors * values.rsqrt()
    values, vectors = torch.linalg.eigh(whitener.T @ between @ whitener)
    count = min(DIMENSIONS, len(counts) - 1, len(values))
    shared, found = values[-count:].clamp(min=1e-3), whitener @ vectors[:, -count:]
    total = shared + (found * (within @ found)).sum(0)
    projection = (axes.T @ found) / scale[:, None] / total.sqrt()
    return QuestionSpace(
        center.float(), projection.float(), (shared / total).clamp(max=0.999).float(), 0.0, 1.0
    )
