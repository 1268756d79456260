"""`QuestionSpace`: what prompts ask, as vectors that are alike where the same thing is asked.

The base model's states in the middle of its blocks say much about the subject and the form of a
wording, and something about what is asked. A linear discriminant keeps the last: fitted on wordings
of many relations about changing subjects (`wordings.jsonl`), it drops what differs among wordings
of one relation, and keeps what differs between relations. Two prompts are compared by how much
likelier their vectors are if one thing is asked than if two are (Ioffe, "Probabilistic Linear
Discriminant Analysis", ECCV 2006); no gradient and no label of a benchmark has a part in it.

There are three views of a wording: the state at its last token, which has read all of it; the
mean state over its second half, which depends less on whether it is a question or a sentence that
breaks off; and the mean of the embeddings of its last question's words, the subject's left out,
which depends on neither order nor form. Each has a discriminant of its own, and what they say is
added. States say so of prompts of one form, too ("The mother of ... is", "The age of ... is"), so
the more words two prompts begin and end with alike, the more must speak for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

DIMENSIONS = 48
"""Of a vector in one view, at most."""
RIDGE = 1.0
"""Of the within-relation variance, in units of its mean."""
TAIL, LEAST = 0.1, 1e-6
"""The share of pairs in the tail; and of those that may pass, at least."""
WEIGHTS = (1.5, 0.5, 1.0)
"""Of the views, in a sum in which each has the unit `QuestionSpace.spread` tells of."""
FORM = 3.0
"""How much more must speak for one question where prompts have all but what is asked in common."""
FOLDS = 3
"""Parts of the relations, each compared in a space that was fitted without it."""


@dataclass(frozen=True)
class QuestionSpace:
    """Where prompts are compared by what they ask.

    Attributes:
        center: (views, hidden), the wordings' mean states.
        projection: (views, hidden, dimensions); it scales states too, so that vectors vary by 1.
        shared: (views, dimensions), the share of that variance that wordings of one relation have
            in common, between 0 and 1.
        spread: (views,), a view's unit: the standard deviation of its log likelihood ratio where
            different things are asked of one subject, by the view's weight.
        boundary: the sum of the views' ratios, in these units, from which a score is above one
            half.
    """

    center: Tensor
    projection: Tensor
    shared: Tensor
    spread: Tensor
    boundary: float

    def vectors(self, states: Tensor) -> Tensor:
        """Project states (..., views, hidden) to vectors (..., views, dimensions), in fp32.

        In each view they have one length.
        """
        found = torch.einsum("...vh,vhd->...vd", states.float() - self.center, self.projection)
        return found / found.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)

    def ratios(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the views' log likelihood ratios of one question to two, (..., views).

        Args:
            one, other: vectors (..., views, dimensions).
        """
        # In each dimension: variance 1, and a covariance of `shared` against none.
        rest = 1 - self.shared.square()
        return (
            (self.shared / rest * one * other).sum(-1)
            - (0.5 * self.shared.square() / rest * (one.square() + other.square())).sum(-1)
            - 0.5 * rest.log().sum(-1)
        )

    def scores(self, one: Tensor, other: Tensor, form: Tensor | float = 0.0) -> Tensor:
        """Return scores (...) between 0 and 1 of vectors; one half at the boundary.

        Args:
            one, other: vectors (..., views, dimensions).
            form: (...), the share of their form that they have in common, see `shared_form`.
        """
        return (self.sums(self.ratios(one, other), form) - self.boundary).sigmoid()

    def sums(self, ratios: Tensor, form: Tensor | float = 0.0) -> Tensor:
        """Return what speaks for one question, (...), of the views' ratios (..., views)."""
        return (ratios / self.spread).sum(-1) - FORM * form


def fit_space(
    states: Tensor,
    relations: Sequence[int],
    subjects: Sequence[str],
    false: float,
    weights: Sequence[float] | None = None,
    form: Callable[[int, int], float] = lambda one, other: 0.0,
) -> QuestionSpace:
    """Fit a space on wordings.

    Args:
        states: (n, views, hidden), of the wordings.
        relations: what each wording asks.
        subjects: of what or whom. As in a prompt and an edit that it mentions, what is asked must
            be told apart where the subject is the same.
        false: the share of pairs of wordings of different relations about one subject that may
            score above one half, where neither relation was fitted on. They are some
            hundreds, too few to count their last hundredth: the last tenth of their sums is taken
            to fall off exponentially.
        weights: of the views; None counts all alike.
        form: returns the share of their form that two wordings have in common, by their places.
    """
    weighed = torch.tensor(weights or [1.0] * states.shape[1])
    labels, known = torch.tensor(relations), list(dict.fromkeys(subjects))
    names = torch.tensor([known.index(name) for name in subjects])
    parts, forms = [], []
    for fold in range(FOLDS):
        held = labels % FOLDS == fold
        space = _fitted(states[~held], labels[~held])
        vectors = space.vectors(states[held])
        alike = names[held][:, None] == names[held][None]
        alike &= labels[held][:, None] != labels[held][None]
        one, other = alike.nonzero(as_tuple=True)
        parts.append(space.ratios(vectors[one], vectors[other]))
        places = held.nonzero()[:, 0]
        pairs = zip(places[one].tolist(), places[other].tolist(), strict=True)
        forms += [form(*pair) for pair in pairs]
    found, space = torch.cat(parts), _fitted(states, labels)
    if not len(found):  # no two relations about one subject
        return space
    space = replace(space, spread=found.std(0, correction=0).clamp(min=1e-3) / weighed)
    sums = space.sums(found, torch.tensor(forms))
    start = float(sums.quantile(1 - max(TAIL, false)))
    beyond = [each - start for each in sums.tolist() if each > start]
    excess = sum(beyond) / max(1, len(beyond))
    boundary = start + excess * math.log(max(TAIL, false) / max(false, LEAST))
    return replace(space, boundary=boundary)


def _fitted(states: Tensor, labels: Tensor) -> QuestionSpace:
    views = [_view(states[:, view], labels) for view in range(states.shape[1])]
    center, projection, shared = (torch.stack(parts) for parts in zip(*views, strict=True))
    return QuestionSpace(center, projection, shared, torch.ones(len(views)), 0.0)


def _view(states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a view's center (hidden,), projection (hidden, dimensions), shared (dimensions,)."""
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
    return center.float(), projection.float(), (shared / total).clamp(max=0.999).float()
