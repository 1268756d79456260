"""What is measured of an edited model, each way to count an answer, and the sums over all answers.

`evaluation` asks the model; nothing here needs one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from errata.cases import LOCALITY_KINDS, PORTABILITY_KINDS
from errata.probes import KINDS

OOD_LOSS = -math.log(0.8)
"""A text counts as known, in the WISE paper's out-of-distribution rule (Eq. 10), when its loss is
below.
"""

MEASURES = ("reliability", "generalization", "locality", "portability")
MEANINGS = {
    "reliability": "it says the new answer to the edit's own prompt",
    "generalization": "it says the new answer however it is asked",
    "locality": "it answers all else as the base model does",
    "portability": "it draws the consequences of the new answer",
}


PROBES = "probes"
"""The measure of the sceptic's probes, whose kinds are those of `probes.KINDS`."""
PROBE_SCORES = {
    "contains": "the answer has the right one in it, or for a letter, yes or no begins with it",
    "exact": "the answer is the right one, whole; letters, signs and articles aside",
}
"""Ways to count an answer to a probe. What is compared with the base, or must not be said, is
explained in `probes.judging`.
"""

SCORES = {
    "generated": "it answers freely, greedily, until it stops by itself: "
    "the answer is the wanted one, whole",
    "normalised": "the same, in whatever letters, signs and articles aside; "
    "further right answers count",
    "contains": "the same, and the wanted answer need only stand in it",
    "cut": "the same, but the answer is cut off where the wanted one ends",
    "forced_exact": "with the wanted answer already in the input, all its tokens are the likeliest",
    "teacher_forced": "with the wanted answer already in the input, "
    "the share of its tokens that are the likeliest",
}
"""Ways to count an answer. For locality the wanted answer is the base model's."""


@dataclass(frozen=True)
class Answer:
    """One prompt, the answer wanted, and the answers of the base and of the edited model.

    Attributes:
        measure: of `MEASURES`; or "ood": text that is scored, not generated; or `PROBES`, which are
            generated, not scored.
        edit_id: the edit that it judges.
        prompt: the question.
        wanted: the right answer; for locality the base model's own.
        before, after: the base and the edited model's answers; "" for text that is scored.
        right, normalised, contains, cut, forced_exact: see `SCORES`; `right` is generated. Of a
            probe, `right` is exact and `contains` as in `PROBE_SCORES`.
        token_accuracy: the share of wanted tokens that are the likeliest, teacher-forced; None of a
            probe.
        loss: of the wanted answer, teacher-forced, in nats per token.
        kind: of the probe.
        divergence: for locality, KL(base || edited) of the next token, the mean over the tokens of
            the base model's answer, in nats.
    """

    measure: str
    edit_id: str
    prompt: str
    wanted: str
    before: str
    after: str
    right: bool
    token_accuracy: float | None
    loss: float | None = None
    kind: str | None = None
    normalised: bool = False
    contains: bool = False
    cut: bool = False
    forced_exact: bool = False
    divergence: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Figures over all cases; None where no case has such a probe.

    Attributes:
        edits: number of cases.
        generated: measure -> share of free answers that are right.
        teacher_forced: measure -> mean share of target tokens that are the argmax; for locality,
            that are the base's argmax.
        scores: name of `SCORES` -> measure -> figure; those two among them.
        locality_by_kind: kind -> share of free answers that did not change.
        divergence_by_kind: kind of locality -> mean KL(base || edited) per token of the base
            model's answer, in nats.
        portability_by_kind: kind -> share of free answers that are right.
        perplexity: of the target behind the edit's prompt, exp of the mean loss.
        ood: share of `ood` texts, or where there are none of rephrasings with their targets, whose
            loss is below -log 0.8.
        probes: name of `PROBE_SCORES` -> kind -> share of right answers, of the kinds asked; "mean"
            is the mean over them. Empty where none were.
        probes_left_out: kind -> edits that it could not be asked of.
        answers: all answers, one by one.
    """

    edits: int
    generated: dict[str, float | None]
    teacher_forced: dict[str, float | None]
    locality_by_kind: dict[str, float | None]
    perplexity: float | None
    ood: float | None
    answers: list[Answer] = field(repr=False)
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    divergence_by_kind: dict[str, float | None] = field(default_factory=dict)
    portability_by_kind: dict[str, float | None] = field(default_factory=dict)
    probes: dict[str, dict[str, float]] = field(default_factory=dict)
    probes_left_out: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, without the single answers, ready for JSON."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name != "answers"
        }


def summary(
    edits: int, answers: Sequence[Answer], left_out: Mapping[str, int] | None = None
) -> Evaluation:
    """Sum up single answers, of so many edits; `left_out` counts the probes not asked, by kind."""
    by = {
        name: [answer for answer in answers if answer.measure == name]
        for name in (*MEASURES, "ood")
    }
    losses = [answer.loss for answer in by["reliability"] if answer.loss is not None]
    unseen = [
        answer.loss for answer in by["ood"] or by["generalization"] if answer.loss is not None
    ]
    kinds = {
        kind: [answer for answer in by["locality"] if answer.kind == kind]
        for kind in LOCALITY_KINDS
    }
    hops = {
        kind: [answer for answer in by["portability"] if answer.kind == kind]
        for kind in PORTABILITY_KINDS
    }
    loss = _mean(losses)
    scores = {
        score: {name: _mean([counted(answer, score) for answer in by[name]]) for name in MEASURES}
        for score in SCORES
    }
    return Evaluation(
        edits=edits,
        generated=scores["generated"],
        teacher_forced=scores["teacher_forced"],
        locality_by_kind={
            kind: _mean([answer.right for answer in some]) for kind, some in kinds.items()
        },
        perplexity=None if loss is None else math.exp(min(loss, 700.0)),
        ood=_mean([value < OOD_LOSS for value in unseen]),
        answers=list(answers),
        scores=scores,
        divergence_by_kind={
            kind: _mean([each.divergence for each in some if each.divergence is not None])
            for kind, some in kinds.items()
        },
        portability_by_kind={
            kind: _mean([answer.right for answer in some]) for kind, some in hops.items()
        },
        probes=_probe_shares([answer for answer in answers if answer.measure == PROBES]),
        probes_left_out=dict(left_out or {}),
    )


def _probe_shares(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Return score -> kind -> share, and their mean; {} without answers."""
    if not answers:
        return {}
    found = {}
    for score in PROBE_SCORES:
        shares = {
            kind: sum(values) / len(values)
            for kind in KINDS
            if (values := [counted(each, score) for each in answers if each.kind == kind])
        }
        found[score] = {**shares, "mean": sum(shares.values()) / len(shares)}
    return found


_FIELDS = {"generated": "right", "exact": "right", "teacher_forced": "token_accuracy"}
"""Scores whose field of an answer has another name."""


def counted(answer: Answer, score: str) -> float:
    """Return how much an answer counts by one of `SCORES` or `PROBE_SCORES`: 0 to 1."""
    return float(getattr(answer, _FIELDS.get(score, score)))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
