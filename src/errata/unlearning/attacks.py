"""Who can tell: attacks that guess what a model was trained on, from how likely it finds it.

A better guess than chance at what was to be forgotten is a trace of it. `likelihoods` scores
passages; the rest is arithmetic on what it found.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.lm import LM
from errata.progress import OnProgress
from errata.unlearning.passages import Passage
from errata.unlearning.scored import Scored, scored

SCORING = "scoring what it knows"
BATCH = 16
"""Passages at a time."""
LOWEST = 0.2
"""Share of a passage's tokens that the Min-K attacks go by."""
ATTACKS = {
    "loss": "how likely the passage is",
    "zlib": "the same, against how well zlib packs it (arXiv 2012.07805)",
    "min_k": "how likely its unlikeliest tokens are (arXiv 2310.16789)",
    "min_k++": "the same, against all tokens that could stand there (arXiv 2404.02936)",
    "reference": "how much likelier it is than to a model that never saw it",
}
"""By what an attacker guesses that a passage was trained on; a higher score is a surer guess."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a passage.

    Attributes:
        count: its tokens.
        mean: their log-probability, in nats.
        exact: the share of them that are the likeliest where they stand.
        extraction: the share, at the end, behind the last one that is not.
        lowest: mean log-probability of the unlikeliest.
        lowest_normed: the same of log-probabilities in standard deviations above the mean over all
            tokens that could stand there.
    """

    count: int
    mean: float
    exact: float
    extraction: float
    lowest: float
    lowest_normed: float


@torch.no_grad()
def likelihoods(lm: LM, passages: Sequence[Passage], progress: OnProgress) -> list[Likelihood]:
    """Score passages; a document that is read in parts has a value for each part.

    Raises:
        PromptTooLongError: a question with its answer does not fit the model's context.
    """
    rows = [row for each in passages for row in each.rows(lm)]
    known: list[Likelihood] = []
    for start in range(0, len(rows), BATCH):
        progress(SCORING, start, len(rows))
        known += _of_each(scored(lm, rows[start : start + BATCH]))
    return known


def _of_each(found: Scored) -> list[Likelihood]:
    logs = found.logits.log_softmax(-1)
    right = logs.argmax(-1) == found.labels
    expected = (logs.exp() * logs).sum(-1)
    spread = ((logs.exp() * logs.square()).sum(-1) - expected.square()).clamp(min=1e-12).sqrt()
    normed = (found.log_probs - expected) / spread
    known = []
    for row in range(found.count):
        own = found.rows == row
        tokens, hits = found.log_probs[own], right[own]
        wrong = (~hits).nonzero()[:, 0]
        suffix = len(hits) - (int(wrong[-1]) + 1 if len(wrong) else 0)
        known.append(
            Likelihood(
                len(tokens),
                float(tokens.mean()),
                float(hits.float().mean()),
                suffix / len(hits),
                _mean_of_lowest(tokens),
                _mean_of_lowest(normed[own]),
            )
        )
    return known


def _mean_of_lowest(values: Tensor) -> float:
    return float(values.sort().values[: max(1, round(LOWEST * len(values)))].mean())


def attacks(
    lm: LM, passages: Sequence[Passage], known: Sequence[Likelihood]
) -> dict[str, list[float]]:
    """Return the attacks' scores, see `ATTACKS`, of passages that were scored; without that against
    a model that never saw them, see `against`.
    """
    texts = [each.text for each in passages for _ in each.rows(lm)]
    return {
        "loss": [each.mean for each in known],
        "zlib": [
            each.mean * each.count / len(zlib.compress(text.encode()))
            for each, text in zip(known, texts, strict=True)
        ],
        "min_k": [each.lowest for each in known],
        "min_k++": [each.lowest_normed for each in known],
    }


def against(
    found: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]
) -> list[float]:
    """Return, of attacks' scores, those of `reference`: against a model that never saw them."""
    pairs = zip(found["loss"], reference["loss"], strict=True)
    return [now - other for now, other in pairs]


def attack_success(members: Sequence[float], others: Sequence[float]) -> float:
    """Return the AUC of an attack: how often a member scores higher than another, ties half."""
    one, two = torch.tensor(members)[:, None], torch.tensor(others)[None]
    return float(((one > two).float() + 0.5 * (one == two).float()).mean())
