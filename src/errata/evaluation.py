"""Evaluates the final model on all its edits: reliability, generalization, locality, portability.

Every figure has the name of its score. `generated`: free greedy generation until the model stops by
itself; an answer counts when all of it is the target. `teacher_forced`: the papers' figure, the
share of target tokens that are the argmax with the target already in the input. The field's other
scores stand beside these, see `SCORES`. Locality compares with the base model's own answers, not
with the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from errata.answers import begins_with, contains_any, is_any
from errata.arguments import as_list
from errata.cases import LOCALITY_KINDS, PORTABILITY_KINDS, Case
from errata.edit import same_answer
from errata.lm import Score
from errata.model import EditModel
from errata.patches.context import leaving_room

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
        measure: of `MEASURES`, or "ood": text that is scored, not generated.
        edit_id: the edit that it judges.
        prompt: the question.
        wanted: the right answer; for locality the base model's own.
        before, after: the base and the edited model's answers; "" for text that is scored.
        right, normalised, contains, cut, forced_exact: see `SCORES`; `right` is generated.
        token_accuracy: the share of wanted tokens that are the likeliest, teacher-forced.
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
    token_accuracy: float
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

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, without the single answers, ready for JSON."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name != "answers"
        }


@dataclass(frozen=True)
class _Question:
    measure: str
    edit_id: str
    prompt: str
    wanted: str | None
    kind: str | None = None
    also: tuple[str, ...] = ()


def evaluate(
    model: EditModel,
    cases: Case | Iterable[Case],
    batch_size: int = 32,
    max_new_tokens: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask the final model all prompts of the cases; cache the base model's answers.

    Args:
        model: the edited model.
        cases: edits with their probes; usually the edits that are in the model.
        batch_size: prompts at a time.
        max_new_tokens: a free answer is cut here if the model does not stop by itself.
        progress: called with (questions done, questions in all).
    """
    cases = as_list(cases, Case, "cases")
    questions = _questions(cases)
    open_questions = [question for question in questions if question.measure != "ood"]
    total, done = 2 * len(open_questions), 0

    def answers_of(ask: Callable[..., list[str]]) -> list[str]:
        nonlocal done
        answers = []
        for start in range(0, len(open_questions), 8 * batch_size):
            part = [question.prompt for question in open_questions[start : start + 8 * batch_size]]
            answers += ask(part, batch_size=batch_size, max_new_tokens=max_new_tokens)
            done += len(part)
            if progress is not None:
                progress(done, total)
        return answers

    nothing = [""] * (len(questions) - len(open_questions))
    before = answers_of(model.ask_base) + nothing
    pairs = [
        (each.prompt, each.wanted or answer or ".")
        for each, answer in zip(questions, before, strict=True)
    ]
    rows = [model.lm.encode(prompt, answer) for prompt, answer in pairs]
    with leaving_room(max([max_new_tokens, *(len(row.ids) - row.prompt_length for row in rows)])):
        after = answers_of(model.ask) + nothing
        scores, base = _scored(model, questions, pairs, batch_size)
    answered = zip(questions, before, after, strict=True)
    answers = [
        _answer(model, *each, scores[place], base.get(place)) for place, each in enumerate(answered)
    ]
    return summary(len(cases), answers)


def _scored(
    model: EditModel,
    questions: Sequence[_Question],
    pairs: Sequence[tuple[str, str]],
    batch_size: int,
) -> tuple[dict[int, Score], dict[int, tuple[Score, float | None]]]:
    """Return (question's place -> its pair's score; locality place -> base's, KL)."""
    local = [place for place, question in enumerate(questions) if question.measure == "locality"]
    others = [place for place, question in enumerate(questions) if question.measure != "locality"]
    scores = dict(
        zip(others, model.score([pairs[place] for place in others], batch_size), strict=True)
    )
    base: dict[int, tuple[Score, float | None]] = {}
    for start in range(0, len(local), 8 * batch_size):
        part = local[start : start + 8 * batch_size]
        some = [pairs[place] for place in part]
        edited = model.score(some, batch_size, whole=True)
        with model.disable_edits():
            untouched = model.score(some, batch_size, whole=True)
        for place, now, was in zip(part, edited, untouched, strict=True):
            scores[place] = replace(now, log_probs=None)
            base[place] = replace(was, log_probs=None), _divergence(was, now)
    return scores, base


def _divergence(base: Score, edited: Score) -> float | None:
    """Return KL(base || edited) per token, in nats."""
    if base.log_probs is None or edited.log_probs is None:
        return None
    return float((base.log_probs.exp() * (base.log_probs - edited.log_probs)).sum(-1).mean())


def _questions(cases: Sequence[Case]) -> list[_Question]:
    questions = []
    for case in cases:
        edit = case.edit
        questions.append(_Question("reliability", edit.id, edit.prompt, edit.target))
        questions += [
            _Question("generalization", edit.id, prompt, edit.target) for prompt in case.rephrases
        ]
        questions += [
            _Question("locality", edit.id, p.prompt, p.answer, p.kind) for p in case.locality
        ]
        questions += [
            _Question("portability", edit.id, p.prompt, p.answer, p.kind, p.also)
            for p in case.portability
        ]
    questions += [
        _Question("ood", case.edit.id, p.prompt, p.answer, p.kind)
        for case in cases
        for p in case.ood
    ]
    return questions


def _answer(
    model: EditModel,
    question: _Question,
    before: str,
    after: str,
    score: Score,
    base: tuple[Score, float | None] | None,
) -> Answer:
    wanted = question.wanted or ""
    tokens, exact, divergence = score.token_accuracy, score.exact, None
    if base is not None:
        same = [a == b for a, b in zip(score.predicted, base[0].predicted, strict=True)]
        tokens, exact, wanted, divergence = sum(same) / len(same), all(same), before, base[1]
    right = before == after if base is not None else same_answer(after, wanted)
    if question.measure == "ood":
        right = score.loss < OOD_LOSS
    accepted = (wanted, *question.also)
    return Answer(
        question.measure,
        question.edit_id,
        question.prompt,
        wanted,
        before,
        after,
        right or any(same_answer(after, other) for other in question.also),
        tokens,
        score.loss,
        question.kind,
        right or is_any(after, accepted),
        right or contains_any(after, accepted),
        right
        or any(begins_with(model.lm, question.prompt, after, each) for each in accepted if each),
        exact,
        divergence,
    )


def summary(edits: int, answers: Sequence[Answer]) -> Evaluation:
    """Sum up single answers, of so many edits."""
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
    )


def counted(answer: Answer, score: str) -> float:
    """Return how much an answer counts by one of `SCORES`: 0 to 1."""
    return float(
        getattr(
            answer, {"generated": "right", "teacher_forced": "token_accuracy"}.get(score, score)
        )
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
