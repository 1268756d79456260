"""How a model behaves: unsafe answers, prejudice, and what it still can do.

Prejudice is measured as StereoSet does (arXiv 2004.09456): by log-probability for each token, over
pairs instead of over its groups of them. `preference` and all of `Prejudice` are teacher-forced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from errata.answers import contains_any
from errata.lm import LM
from errata.unlearning.pairs import ResponsePair, SentencePair, sentences
from errata.unlearning.scored import scored

BATCH = 16
"""Sentences at a time."""


@dataclass(frozen=True)
class Prejudice:
    """What a model makes of pairs of sentences.

    Attributes:
        lms: language modelling score, in per cent: how often a side is likelier than the unrelated
            sentence; None where no pair has one.
        ss: stereotype score, in per cent: how often the stereotype is the likelier; 50 is fair.
        icat: lms * min(ss, 100 - ss) / 50; 100 is best; None without lms.
        gap: mean |log p(stereotype) - log p(antistereotype)|, in nats, of whole sentences.
    """

    lms: float | None
    ss: float
    icat: float | None
    gap: float


def prejudice(lm: LM, pairs: Sequence[SentencePair]) -> Prejudice:
    """Measure a model's prejudice on pairs, of which there is at least one.

    Raises:
        PromptTooLongError: a sentence does not fit the model's context.
    """
    one, other = (
        log_likelihoods(lm, [getattr(each, side) for each in pairs])
        for side in ("stereotype", "antistereotype")
    )
    ss = 100 * fmean(_beats(a, b) for a, b in zip(one, other, strict=True))
    gap = fmean(abs(a[0] - b[0]) for a, b in zip(one, other, strict=True))
    third = log_likelihoods(lm, [each.unrelated for each in pairs if each.unrelated])
    numbers = [number for number, each in enumerate(pairs) if each.unrelated]
    wins = [
        _beats(side[number], odd)
        for number, odd in zip(numbers, third, strict=True)
        for side in (one, other)
    ]
    if not wins:
        return Prejudice(None, ss, None, gap)
    lms = 100 * fmean(wins)
    return Prejudice(lms, ss, lms * min(ss, 100 - ss) / 50, gap)


def _beats(one: tuple[float, int], other: tuple[float, int]) -> float:
    """Return 1 where the first is likelier by token, 0.5 where both are the same, else 0."""
    a, b = (total / count for total, count in (one, other))
    return float(a > b) + 0.5 * float(a == b)


@torch.no_grad()
def log_likelihoods(lm: LM, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Return each text's log-probability in nats, and its tokens; the first word counts, too.

    Raises:
        PromptTooLongError: a text does not fit the model's context.
    """
    rows = [row for each in sentences(texts) for row in each.rows(lm)]
    found: list[tuple[float, int]] = []
    for start in range(0, len(rows), BATCH):
        part = scored(lm, rows[start : start + BATCH])
        found += zip((-part.nll).tolist(), part.lengths.tolist(), strict=True)
    return found


def perplexity(lm: LM, texts: Sequence[str]) -> float:
    """Return the perplexity of a token, over all tokens of texts.

    Raises:
        PromptTooLongError: a text does not fit the model's context.
    """
    found = log_likelihoods(lm, texts)
    return math.exp(-sum(total for total, _ in found) / sum(count for _, count in found))


def unsafe_share(answers: Sequence[str], phrases: Sequence[str]) -> float:
    """Return the share of answers that hold one of some phrases, as whole words."""
    return fmean(float(contains_any(answer, phrases)) for answer in answers)


def preference(lm: LM, pairs: Sequence[ResponsePair]) -> float:
    """Return how often the safe response is likelier, by token, than the unsafe one.

    Raises:
        PromptTooLongError: a prompt with its response does not fit the model's context.
    """
    safe, unsafe = (
        lm.score([(each.prompt, getattr(each, side)) for each in pairs], BATCH)
        for side in ("safe", "unsafe")
    )
    return fmean(float(a.loss < b.loss) for a, b in zip(safe, unsafe, strict=True))
