"""Evaluates the final model on all its edits: reliability, generalization, locality, portability.

Every figure has the name of its score. `generated`: free greedy generation until the model stops by
itself; an answer counts when all of it is the target. `teacher_forced`: the papers' figure, the
share of target tokens that are the argmax with the target already in the input. The field's other
scores stand beside these, see `measures.SCORES`. Locality compares with the base model's own
answers, not with the truth. The sceptic's probes (see `probes`) are asked beside the cases' own.

Each prompt is put to a model once, whatever it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from errata.answers import begins_with, contains_any, is_any
from errata.arguments import as_list
from errata.cases import Case
from errata.edit import same_answer
from errata.lm import LM, Score
from errata.measures import OOD_LOSS, PROBES, Answer, Evaluation, summary
from errata.patches.context import leaving_room
from errata.probes import Probes
from errata.probes.conversation import AskedProbe, asked_probes
from errata.probes.judging import judge
from errata.probes.question import ANSWER_LENGTH
from errata.progress import report

NO_PROBES = Probes()
# Prompts at a time: scored, with logits at all places of the target, and answered freely, with one.
SCORED, ANSWERED = 32, 128


class Answering(Protocol):
    """What is evaluated: an `EditModel`, or what stands in for one (see `bench.references`)."""

    @property
    def lm(self) -> LM:
        """The base model with its tokenizer."""

    def ask(self, prompts: list[str], **options: Any) -> list[str]:
        """Answer freely."""

    def ask_base(self, prompts: list[str], **options: Any) -> list[str]:
        """Answer as the base model does."""

    def score(
        self, pairs: list[tuple[str, str]], batch_size: int = 32, whole: bool = False
    ) -> list[Score]:
        """Score (prompt, target) pairs by teacher forcing."""

    def disable_edits(self) -> AbstractContextManager[None]:
        """Be the base model within a `with` block."""


@dataclass(frozen=True)
class _Question:
    measure: str
    edit_id: str
    prompt: str
    wanted: str | None
    kind: str | None = None
    also: tuple[str, ...] = ()


def evaluate(
    model: Answering,
    cases: Case | Iterable[Case],
    batch_size: int | None = None,
    max_new_tokens: int = ANSWER_LENGTH,
    progress: Callable[[int, int], None] | None = None,
    probes: Probes = NO_PROBES,
) -> Evaluation:
    """Ask the final model all prompts of the cases; cache the base model's answers.

    Args:
        model: the edited model.
        cases: edits with their probes; usually the edits that are in the model.
        batch_size: prompts at a time; None is 32 that are scored, and 128 that are answered freely.
        max_new_tokens: a free answer is cut here if the model does not stop by itself.
        progress: called with (questions done, questions in all).
        probes: what else is asked, see `probes.make_probes`.
    """
    cases = as_list(cases, Case, "cases")
    questions = _questions(cases)
    asked, left_out = asked_probes(model.lm, probes, max_new_tokens)
    wanted = [
        *((each.prompt, max_new_tokens) for each in questions if each.measure != "ood"),
        *((each.prompt.text, each.length) for each in asked),
    ]
    asking = _Asking(wanted, batch_size or ANSWERED, progress)
    before = asking.answers(model.ask_base)

    def said(answers: Mapping[tuple[str, int], str], each: _Question) -> str:
        return "" if each.measure == "ood" else answers[each.prompt, max_new_tokens]

    own = [said(before, each) for each in questions]
    pairs = [
        (each.prompt, each.wanted or answer or ".")
        for each, answer in zip(questions, own, strict=True)
    ]
    rows = [model.lm.encode(prompt, answer) for prompt, answer in pairs]
    longest = max(
        [
            *(length for _, length in wanted),
            *(len(row.ids) - row.prompt_length for row in rows),
        ],
        default=max_new_tokens,
    )
    with leaving_room(longest):
        after = asking.answers(model.ask)
        scores, base = _scored(model, questions, pairs, batch_size or SCORED)
    answers = [
        _answer(
            model,
            question,
            own[place],
            said(after, question),
            scores[place],
            base.get(place),
        )
        for place, question in enumerate(questions)
    ]
    for probe in asked:
        key = probe.prompt.text, probe.length
        answers.append(_probe_answer(probe, before[key], after[key]))
    return summary(len(cases), answers, left_out)


class _Asking:
    """All that is asked, each prompt once for each length of answer."""

    def __init__(
        self,
        wanted: Sequence[tuple[str, int]],
        batch_size: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.wanted = list(dict.fromkeys(wanted))
        self.batch_size, self.progress = batch_size, progress
        self.done = 0

    def answers(self, ask: Callable[..., list[str]]) -> dict[tuple[str, int], str]:
        """Return (prompt, length) -> answer; prompts of like length are asked together."""
        found: dict[tuple[str, int], str] = {}
        for length in sorted({length for _, length in self.wanted}):
            prompts = sorted((prompt for prompt, of in self.wanted if of == length), key=len)
            for start in range(0, len(prompts), self.batch_size):
                part = prompts[start : start + self.batch_size]
                answers = ask(part, batch_size=self.batch_size, max_new_tokens=length)
                found |= {
                    (prompt, length): answer for prompt, answer in zip(part, answers, strict=True)
                }
                self.done += len(part)
                if self.progress is not None:
                    self.progress(self.done, 2 * len(self.wanted))
        return found


def _scored(
    model: Answering,
    questions: Sequence[_Question],
    pairs: Sequence[tuple[str, str]],
    batch_size: int,
) -> tuple[dict[int, Score], dict[int, tuple[Score, float | None]]]:
    """Return (question's place -> its pair's score; locality place -> base's, KL)."""
    local = [place for place, question in enumerate(questions) if question.measure == "locality"]
    others = [place for place, question in enumerate(questions) if question.measure != "locality"]
    scores: dict[int, Score] = {}
    base: dict[int, tuple[Score, float | None]] = {}
    for start in range(0, len(others), 8 * batch_size):
        report("scoring", start, len(questions))
        part = others[start : start + 8 * batch_size]
        found = model.score([pairs[place] for place in part], batch_size)
        scores |= zip(part, found, strict=True)
    for start in range(0, len(local), 8 * batch_size):
        report("scoring", len(others) + start, len(questions))
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
    model: Answering,
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


def _probe_answer(probe: AskedProbe, before: str, after: str) -> Answer:
    question = probe.question
    before, after = probe.prompt.answer(before), probe.prompt.answer(after)
    contains, exact = judge(question, before, after)
    wanted = question.expects if question.expects == "as the base" else question.wanted[0]
    if question.expects == "not new":
        wanted = f"not {wanted}"
    return Answer(
        PROBES,
        question.edit_id,
        probe.prompt.text,
        wanted,
        before,
        after,
        exact,
        None,
        kind=question.kind,
        normalised=exact,
        contains=contains,
    )
