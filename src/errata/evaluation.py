"""Evaluates the final model on all its edits: reliability, generalization, locality, portability.

Every figure has the name of its score. `generated`: free greedy generation until the model stops by
itself; an answer counts when all of it is the target. `teacher_forced`: the papers' figure, the
share of target tokens that are the argmax with the target already in the input. The field's other
scores stand beside these, see `measures.SCORES`. Locality compares with the base model's own
answers, not with the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from errata.answers import begins_with, contains_any, is_any
from errata.arguments import as_list
from errata.cases import Case
from errata.edit import same_answer
from errata.lm import Score
from errata.measures import OOD_LOSS, Answer, Evaluation, summary
from errata.model import EditModel
from errata.patches.context import leaving_room


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
