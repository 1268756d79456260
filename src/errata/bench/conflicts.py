"""Finds records that contradict each other before anything runs, and applies one of three policies.

Two records ask the same question if they have the same subject and the same earlier answers; where
the file gives neither, if their prompts are equal. If their targets differ, no model can give both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from errata.cases import Case, Probe

POLICIES = ("published", "conflict-free", "later")
"""All records as they are; without contradictions and locality probes of edited facts; all records,
with the last answer to a question as the right one.
"""


@dataclass(frozen=True)
class ConflictPolicy:
    """A stream of cases under one of the `POLICIES`.

    Attributes:
        name: which.
        cases: the stream.
        questions: for each case a key of its question, equal for the same question.
        conflicts: cases of the file with another target than a case with the same question.
        records: cases of the file.
        probes_left_out: locality probes of edited facts, which `conflict-free` leaves out.
    """

    name: str
    cases: list[Case]
    questions: list[Hashable]
    conflicts: int
    records: int
    probes_left_out: int = 0

    def judged(self, edits: int) -> list[Case]:
        """Return the first cases as they are judged after so many edits."""
        cases = self.cases[:edits]
        if self.name != "later":
            return cases
        last = dict(zip(self.questions, cases, strict=False))
        return [
            _with_target(case, last[question])
            for case, question in zip(cases, self.questions, strict=False)
        ]

    def ceiling(self, edits: int) -> float:
        """Return the best reliability on the first edits of a model with one answer a question."""
        answers: dict[Hashable, Counter[str]] = defaultdict(Counter)
        judged = self.judged(edits)
        for case, question in zip(judged, self.questions, strict=False):
            answers[question][_target(case)] += 1
        return sum(max(counts.values()) for counts in answers.values()) / max(1, len(judged))


def apply_policy(name: str, cases: Sequence[Case]) -> ConflictPolicy:
    """Find the contradictions among cases, and apply a policy to them.

    Args:
        name: of `POLICIES`.
        cases: as the file has them.
    """
    questions = [_question(case) for case in cases]
    targets: dict[Hashable, set[str]] = defaultdict(set)
    for case, question in zip(cases, questions, strict=True):
        targets[question].add(_target(case))
    stay = [place for place, question in enumerate(questions) if len(targets[question]) == 1]
    conflicts, records = len(cases) - len(stay), len(cases)
    if name != "conflict-free":
        return ConflictPolicy(name, list(cases), questions, conflicts, records)
    kept = _apart_from(cases, [cases[place] for place in stay])
    probes = sum(len(cases[place].locality) for place in stay) - sum(
        len(case.locality) for case in kept
    )
    return ConflictPolicy(
        name, kept, [questions[place] for place in stay], conflicts, records, probes
    )


def _question(case: Case) -> Hashable:
    if case.edit.subject and case.truth:
        return case.edit.subject.lower(), frozenset(text.lower() for text in case.truth)
    return " ".join(case.edit.prompt.lower().split())


def _target(case: Case) -> str:
    return case.edit.target.strip().lower()


def _with_target(case: Case, last: Case) -> Case:
    """Return a case judged by a later one's answer, without probes of its own answer."""
    if _target(case) == _target(last):
        return case
    return replace(case, edit=replace(case.edit, target=last.edit.target), portability=(), ood=())


def _apart_from(edited: Iterable[Case], cases: Sequence[Case]) -> list[Case]:
    """Take out the locality probes of what is edited: a subject, an answer that was right."""
    subjects_by_answer = defaultdict(set)
    for case in edited:
        for answer in case.truth:
            if case.edit.subject:
                subjects_by_answer[answer.lower()].add(case.edit.subject)

    def stays(probe: Probe) -> bool:
        answers = [answer.lower() for answer in (probe.answer or "", *probe.also)]
        return not any(
            subject in probe.prompt
            for answer in answers
            for subject in subjects_by_answer.get(answer, ())
        )

    return [replace(case, locality=tuple(filter(stays, case.locality))) for case in cases]
