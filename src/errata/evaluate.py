"""Reliability, generalization, locality, portability of an edited model, always the final one, over all its edits.

Every figure says what it is. `generated`: the model answers freely, greedily, until it stops by itself; an answer counts
when it is the wanted one, whole. `teacher_forced`: the papers' figure, the share of target tokens that are the argmax with
the target already in the input. Locality compares with the base model's own answers, not with the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from errata.cases import LOCALITY_KINDS, Case
from errata.edit import same_answer
from errata.lm import Score
from errata.model import EditModel

OOD_LOSS = -math.log(0.8)
"""A rephrasing counts as known, in the WISE paper's out-of-distribution rule, when its target's loss is below."""

MEASURES = ("reliability", "generalization", "locality", "portability")
MEANINGS = {
    "reliability": "it says the new answer to the edit's own prompt",
    "generalization": "it says the new answer however it is asked",
    "locality": "it answers all else as the base model does",
    "portability": "it draws the consequences of the new answer",
}


@dataclass(frozen=True)
class Answer:
    """What was asked, what was wanted, what the base and the edited model said.

    `wanted` is the base model's own answer for locality. `token_accuracy` and `loss` are teacher-forced.
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


@dataclass(frozen=True)
class Evaluation:
    """Figures over all cases; None where no case has such a probe.

    Attributes:
        edits: number of cases.
        generated: measure -> share of free answers that are right.
        teacher_forced: measure -> mean share of target tokens that are the argmax; for locality, that are the base's argmax.
        locality_by_kind: kind -> share of free answers that did not change.
        perplexity: of the target behind the edit's prompt, exp of the mean loss.
        ood: share of rephrasings whose target's loss is below -log 0.8.
        answers: every single answer.
    """

    edits: int
    generated: dict[str, float | None]
    teacher_forced: dict[str, float | None]
    locality_by_kind: dict[str, float | None]
    perplexity: float | None
    ood: float | None
    answers: list[Answer] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The figures, without the single answers, ready for JSON."""
        return {
            "edits": self.edits,
            "generated": self.generated,
            "teacher_forced": self.teacher_forced,
            "locality_by_kind": self.locality_by_kind,
            "perplexity": self.perplexity,
            "ood": self.ood,
        }


@dataclass(frozen=True)
class _Question:
    measure: str
    edit_id: str
    prompt: str
    wanted: str | None
    kind: str | None = None


def evaluate(
    model: EditModel,
    cases: Sequence[Case],
    batch_size: int = 32,
    max_new_tokens: int = 24,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask the final model everything the cases hold; the base model's answers are kept with the model.

    Args:
        model: the edited model.
        cases: edits with their probes; usually the edits that are in the model.
        batch_size: prompts at a time.
        max_new_tokens: a free answer is cut here if the model does not stop by itself.
        progress: called with (questions done, questions in all).
    """
    questions = _questions(cases)
    prompts = [question.prompt for question in questions]
    total = 2 * len(questions)
    done = 0

    def asked(some: Sequence[str], ask: Callable[..., list[str]]) -> list[str]:
        nonlocal done
        answers = []
        for start in range(0, len(some), 8 * batch_size):
            part = some[start : start + 8 * batch_size]
            answers += ask(part, batch_size=batch_size, max_new_tokens=max_new_tokens)
            done += len(part)
            if progress is not None:
                progress(done, total)
        return answers

    before = asked(prompts, model.ask_base)
    after = asked(prompts, model.ask)
    targets = [q.wanted or said or "." for q, said in zip(questions, before, strict=True)]
    pairs = list(zip(prompts, targets, strict=True))
    scores = model.lm.score(pairs, batch_size)
    with model.disable_edits():
        local = [i for i, question in enumerate(questions) if question.measure == "locality"]
        base = dict(zip(local, model.lm.score([pairs[i] for i in local], batch_size) if local else [], strict=True))
    answers = [
        _answer(question, *said, score, base.get(i))
        for i, (question, said, score) in enumerate(zip(questions, zip(before, after, strict=True), scores, strict=True))
    ]
    return _summary(len(cases), answers)


def _questions(cases: Sequence[Case]) -> list[_Question]:
    questions = []
    for case in cases:
        edit = case.edit
        questions.append(_Question("reliability", edit.id, edit.prompt, edit.target))
        questions += [_Question("generalization", edit.id, prompt, edit.target) for prompt in case.rephrases]
        questions += [_Question("locality", edit.id, p.prompt, p.answer, p.kind) for p in case.locality]
        questions += [_Question("portability", edit.id, p.prompt, p.answer) for p in case.portability]
    return questions


def _answer(question: _Question, before: str, after: str, score: Score, base: Score | None) -> Answer:
    if base is not None:
        same = [a == b for a, b in zip(score.predicted, base.predicted, strict=True)]
        tokens, right, wanted = sum(same) / len(same), before == after, before
    else:
        wanted = question.wanted or ""
        tokens, right = score.token_accuracy, same_answer(after, wanted)
    return Answer(
        question.measure,
        question.edit_id,
        question.prompt,
        wanted,
        before,
        after,
        right,
        tokens,
        score.loss,
        question.kind,
    )


def _summary(edits: int, answers: list[Answer]) -> Evaluation:
    by = {name: [answer for answer in answers if answer.measure == name] for name in MEASURES}
    losses = [answer.loss for answer in by["reliability"] if answer.loss is not None]
    rephrased = [answer.loss for answer in by["generalization"] if answer.loss is not None]
    kinds = {kind: _mean([answer.right for answer in by["locality"] if answer.kind == kind]) for kind in LOCALITY_KINDS}
    loss = _mean(losses)
    return Evaluation(
        edits=edits,
        generated={name: _mean([answer.right for answer in by[name]]) for name in MEASURES},
        teacher_forced={name: _mean([answer.token_accuracy for answer in by[name]]) for name in MEASURES},
        locality_by_kind=kinds,
        perplexity=None if loss is None else math.exp(min(loss, 700.0)),
        ood=_mean([value < OOD_LOSS for value in rephrased]),
        answers=answers,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
