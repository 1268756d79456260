"""What a model still knows of passages: said freely, likely, memorised.

The measures are TOFU's (arXiv 2401.06121), MUSE's (arXiv 2407.06460) and those of open-unlearning
(arXiv 2506.12618). `remembered` asks and scores; the rest is arithmetic on what it found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, harmonic_mean

import torch

from errata.answers import contains_any
from errata.errors import UsageError
from errata.lm import LM
from errata.lm.encoding import Row, in_batches
from errata.progress import OnProgress
from errata.unlearning.attacks import BATCH, attacks, likelihoods
from errata.unlearning.passages import Passage
from errata.words.parts import words

ASKING = "asking what it knows"
LONGEST = 128
"""Tokens of an answer, at most."""
REPEATED = 0.5
"""The share of an answer's words that are new, below which it is no language."""


@dataclass(frozen=True)
class Memory:
    """What a model knows of passages, a value for each.

    Attributes:
        answers: generated to their prompts; of a document, to its first half.
        said: 1 where the answer stands in what is generated, else 0.
        rouge: ROUGE-L recall of the answer, or of a document's second half, in it.
        probability: of the answer, to the power of one over its tokens.
        truth_ratio: of wrong answers against the right one in other words, the same way; empty
            where the passages have none.
        exact: the share of tokens that are the likeliest where they stand (exact memorisation).
        broken: 1 where what is generated is no language, see `is_broken`, else 0.
        extraction: the share of a passage, at its end, that the model goes on with by itself once
            what is before it is given (extraction strength).
        attacks: attack -> scores, see `ATTACKS`.
    """

    answers: list[str]
    said: list[float]
    rouge: list[float]
    probability: list[float]
    truth_ratio: list[float]
    exact: list[float]
    extraction: list[float]
    broken: list[float]
    attacks: Mapping[str, list[float]]

    def means(self) -> dict[str, float | None]:
        """Return the means over the passages, of what they have."""
        named = {
            "said": self.said, "rouge": self.rouge, "probability": self.probability,
            "truth_ratio": self.truth_ratio, "exact": self.exact, "extraction": self.extraction,
            "broken": self.broken,
        }  # fmt: skip
        return {name: fmean(values) if values else None for name, values in named.items()}


@torch.no_grad()
def remembered(lm: LM, passages: Sequence[Passage], progress: OnProgress) -> Memory:
    """Return what a model knows of passages.

    Args:
        lm: the model.
        passages: all questions, or all documents.
        progress: called with what is done.

    Raises:
        PromptTooLongError: a question with its answer does not fit the model's context.
        UsageError: rouge-score is not installed.
    """
    answers = answered(lm, passages, progress)
    known = likelihoods(lm, passages, progress)
    wanted = [_wanted(lm, each) for each in passages]
    return Memory(
        answers,
        _said(wanted, answers),
        rouge_recalls(wanted, answers),
        [math.exp(each.mean) for each in known],
        _truth_ratios(lm, passages),
        [each.exact for each in known],
        [each.extraction for each in known],
        [float(is_broken(answer)) for answer in answers],
        attacks(lm, passages, known),
    )


def share_said(lm: LM, passages: Sequence[Passage], progress: OnProgress) -> float:
    """Return the share of passages whose answer stands in what a model says freely."""
    answers = answered(lm, passages, progress)
    return fmean(_said([_wanted(lm, each) for each in passages], answers))


def _said(wanted: Sequence[str], answers: Sequence[str]) -> list[float]:
    pairs = zip(wanted, answers, strict=True)
    return [float(contains_any(answer, [text])) for text, answer in pairs]


def answered(lm: LM, passages: Sequence[Passage], progress: OnProgress) -> list[str]:
    """Return a free answer to each question, and to each document's first half."""
    found: list[str] = []
    for start in range(0, len(passages), BATCH):
        progress(ASKING, start, len(passages))
        part = passages[start : start + BATCH]
        if all(each.prompt for each in part):
            longest = max(len(lm.encode_piece(each.text)) for each in part)
            most = min(LONGEST, 2 * longest + 8)
            found += lm.generate([each.prompt for each in part], max_new_tokens=most)
        else:
            found += _continued(lm, [_halves(lm, each)[0] for each in part])
    return found


def _continued(lm: LM, begun: Sequence[list[int]]) -> list[str]:
    def one(part: list[list[int]]) -> list[str]:
        batch = lm.batch([Row(tuple(ids), len(ids)) for ids in part])
        out = lm.greedy_model().generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=LONGEST
        )
        return [lm.decode(ids[batch.input_ids.shape[1] :].tolist()) for ids in out]

    return in_batches(list(begun), one, BATCH, size=len)


def _halves(lm: LM, passage: Passage) -> tuple[list[int], list[int]]:
    """Return a document's tokens, before and behind its middle, as many as fit."""
    ids = lm.encode_text(passage.text)
    room = (lm.context_length or 2 * LONGEST + 1024) - LONGEST
    half = max(1, min(len(ids) // 2, room))
    return ids[:half], ids[half : half + LONGEST]


def _wanted(lm: LM, passage: Passage) -> str:
    return passage.text if passage.prompt else lm.decode(_halves(lm, passage)[1])


def _truth_ratios(lm: LM, passages: Sequence[Passage]) -> list[float]:
    """Return TOFU's truth ratios, where all passages have wrong answers."""
    if not passages or not all(each.prompt and each.wrong for each in passages):
        return []
    pairs = [
        (each.prompt, text)
        for each in passages
        for text in (each.paraphrase or each.text, *each.wrong)
    ]
    losses = iter(score.loss for score in lm.score(pairs, BATCH))
    ratios = []
    for each in passages:
        right = next(losses)
        ratios.append(fmean(math.exp(-next(losses)) for _ in each.wrong) / math.exp(-right))
    return ratios


def rouge_recalls(wanted: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Return ROUGE-L recalls, stemmed.

    Raises:
        UsageError: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UsageError("ROUGE needs a library: pip install 'errata[unlearning]'.") from error
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [
        float(scorer.score(text, answer)["rougeL"].recall)
        for text, answer in zip(wanted, answers, strict=True)
    ]


def forget_quality(found: Memory, retrained: Memory) -> float | None:
    """Return TOFU's forget quality: the p-value of a Kolmogorov-Smirnov test that the truth ratios
    are those of a model which was never trained on the passages; None where there are none.

    Raises:
        UsageError: scipy is not installed.
    """
    if not found.truth_ratio or not retrained.truth_ratio:
        return None
    try:
        from scipy.stats import ks_2samp
    except ImportError as error:
        raise UsageError("the test needs scipy: pip install 'errata[unlearning]'.") from error
    return float(ks_2samp(found.truth_ratio, retrained.truth_ratio).pvalue)


def utility(kept: Sequence[Memory]) -> float:
    """Return TOFU's model utility: the harmonic mean, over sets of passages that are kept, of
    probability, ROUGE and, where there are wrong answers, 1 less the truth ratio (0 at least).
    """
    values = []
    for each in kept:
        means = each.means()
        values += [means["probability"] or 0.0, means["rouge"] or 0.0]
        if each.truth_ratio:
            values.append(fmean(max(0.0, 1 - ratio) for ratio in each.truth_ratio))
    return harmonic_mean(values) if values else 0.0


def is_broken(answer: str) -> bool:
    """Whether an answer is no language: it has no word, or most of its words were said before."""
    said = words(answer)
    return not said or len(set(said)) < REPEATED * len(said)
