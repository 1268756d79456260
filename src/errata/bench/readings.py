"""Edits that contradict each other, found before anything is run, and the three ways to read a file
that has such.

Two edits ask the same when they are about one subject and the same answers were right before; where
the file does not say either, when their prompts are the same words. If they want different answers,
no model can give both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from errata.cases import Case, Probe

READINGS = {
    "published": "every record as it is; what contradicts itself caps every score",
    "conflict-free": "without the records that contradict another, and without probes that ask what is edited",
    "later": "every record is an edit, and the last answer to a question is the right one",
}


@dataclass(frozen=True)
class Reading:
    """A stream of cases under one of the `READINGS`.

    Attributes:
        name: which.
        cases: the stream.
        questions: for each case what it asks; equal ones ask the same.
        conflicts: cases of the file that want another answer than one that asks the same.
        records: cases of the file.
        probes_left_out: locality probes of the file that ask what is edited, in the conflict-free
            reading.
    """

    name: str
    cases: list[Case]
    questions: list[Hashable]
    conflicts: int
    records: int
    probes_left_out: int = 0

    def judged(self, edits: int) -> list[Case]:
        """The first cases, as they are to be judged when so many edits have been written."""
        cases = self.cases[:edits]
        if self.name != "later":
            return cases
        last = dict(zip(self.questions, cases, strict=False))
        return [
            _with_target(case, last[question])
            for case, question in zip(cases, self.questions, strict=False)
        ]

    def ceiling(self, edits: int) -> float:
        """The reliability that a model reaches at most that gives one answer to a question, among
        the first edits.
        """
        said: dict[Hashable, Counter[str]] = defaultdict(Counter)
        judged = self.judged(edits)
        for case, question in zip(judged, self.questions, strict=False):
            said[question][_wanted(case)] += 1
        return sum(max(answers.values()) for answers in said.values()) / max(1, len(judged))


def read_as(name: str, cases: Sequence[Case], truths: Sequence[frozenset[str]]) -> Reading:
    """Cases under a reading.

    Args:
        name: of `READINGS`.
        cases: as the file has them.
        truths: for each case the answers that were right before, in small letters; empty where that
            is not known.
    """
    questions = [_question(case, truth) for case, truth in zip(cases, truths, strict=True)]
    wanted: dict[Hashable, set[str]] = defaultdict(set)
    for case, question in zip(cases, questions, strict=True):
        wanted[question].add(_wanted(case))
    clear = [len(wanted[question]) == 1 for question in questions]
    conflicts, records = clear.count(False), len(cases)
    if name != "conflict-free":
        return Reading(name, list(cases), questions, conflicts, records)
    stay = [place for place, alone in enumerate(clear) if alone]
    edited = [(case.edit.subject, truth) for case, truth in zip(cases, truths, strict=True)]
    kept = _apart_from(edited, [cases[place] for place in stay])
    probes = sum(len(cases[place].locality) for place in stay) - sum(
        len(case.locality) for case in kept
    )
    return Reading(name, kept, [questions[place] for place in stay], conflicts, records, probes)


def _question(case: Case, truth: frozenset[str]) -> Hashable:
    if case.edit.subject and truth:
        return case.edit.subject.lower(), truth
    return " ".join(case.edit.prompt.lower().split())


def _wanted(case: Case) -> str:
    return case.edit.target.strip().lower()


def _with_target(case: Case, last: Case) -> Case:
    """A case that is judged by a later one's answer; what follows from its own answer is not asked
    any more.
    """
    if _wanted(case) == _wanted(last):
        return case
    return replace(case, edit=replace(case.edit, target=last.edit.target), portability=(), ood=())


def _apart_from(
    edited: Iterable[tuple[str | None, frozenset[str]]], cases: Sequence[Case]
) -> list[Case]:
    """The cases without the locality probes that ask for what is edited: (subject, answers that
    were right before).
    """
    by_answer = defaultdict(set)
    for subject, truth in edited:
        for answer in truth:
            if subject:
                by_answer[answer].add(subject)

    def stays(probe: Probe) -> bool:
        said = [answer.lower() for answer in (probe.answer or "", *probe.also)]
        return not any(
            subject in probe.prompt for answer in said for subject in by_answer.get(answer, ())
        )

    return [replace(case, locality=tuple(filter(stays, case.locality))) for case in cases]
