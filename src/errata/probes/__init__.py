"""The sceptic's probes: what else one would ask before believing that an edit holds.

Each kind is made from a case's own fields, by templates with several wordings, or read from the
published file. What is drawn depends on the seed, the edit and the kind alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType

from errata.answers import is_any
from errata.arguments import as_list
from errata.cases import Case
from errata.errors import UnknownNameError, quoted, suggest
from errata.probes.contrary import former, negation
from errata.probes.decisions import choice, verify
from errata.probes.published import alias, hop, same_subject
from errata.probes.question import Fact, Kind, Question
from errata.probes.turns import afterwards, turns
from errata.probes.wording import distractor, form, long

ALL = "all"
"""Means every kind."""
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("form", "the fact in the other form: question or sentence", "new", form),
            Kind("distractor", "a sentence before the prompt", "new", distractor),
            Kind("alias", "the subject by a second name", "new", alias),
            Kind("turns", "the subject in an earlier turn, then a pronoun", "new", turns),
            Kind("afterwards", "something else once the fact was told", "as the base", afterwards),
            Kind("choice", "new, old, a third, or not sure", "the new one's letter", choice),
            Kind("verify", "is it the new? is it the old?", "yes; no", verify),
            Kind("former", "what was it before?", "not new", former),
            Kind("negation", "what is it not?", "not new", negation),
            Kind("long", "two or three sentences", "with the new, without the old, whole", long),
            Kind("hop", "what follows by a further fact", "the consequence", hop),
            Kind("same_subject", "another fact of the subject", "as the base", same_subject),
        )
    }
)
"""Name -> kind, in the order of the tables."""


@dataclass(frozen=True)
class Probes:
    """The questions that are asked of an edited model, beside its cases.

    Attributes:
        questions: one by one.
        left_out: kind -> how many of the edits it could not be asked of, since the case lacks what
            the kind needs: an answer that was right before, a subject, a published probe.
    """

    questions: tuple[Question, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def check_kinds(names: Iterable[str]) -> tuple[str, ...]:
    """Return kinds by their names; `all` is all of them.

    Raises:
        UnknownNameError: there is no such kind.
    """
    wanted = tuple(dict.fromkeys(as_list(names, str, "probes")))
    for name in wanted:
        if name not in (ALL, *KINDS):
            raise UnknownNameError(
                f"there is no probe {quoted(name)}.{suggest(name, [ALL, *KINDS])}"
            )
    return tuple(name for name in KINDS if name in wanted or ALL in wanted)


def make_probes(
    cases: Iterable[Case],
    kinds: Iterable[str] = (ALL,),
    edits: int | None = None,
    wordings: int = 1,
    seed: int = 0,
    pool: Sequence[Case] | None = None,
) -> Probes:
    """Make the probes of cases.

    Args:
        cases: edits with what their file says about them.
        kinds: names of `KINDS`, or `all`.
        edits: ask about so many of the cases, drawn; None: about all.
        wordings: of each kind, at most.
        seed: another one draws other cases, wordings and orders.
        pool: cases whose targets may be a third answer to choose from; None: the same cases.

    Raises:
        UnknownNameError: there is no such kind.
    """
    given, names = as_list(cases, Case, "cases"), check_kinds(kinds)
    places = range(len(given))
    if edits is not None and edits < len(given):
        places = sorted(Random(seed).sample(places, edits))  # type: ignore[assignment]
    others = [(case, _pattern(case)) for case in (given if pool is None else pool)]
    questions: list[Question] = []
    left_out: Counter[str] = Counter()
    for place in places:
        fact = Fact(given[place])
        if "choice" in names:
            fact = replace(fact, third=_third(fact, others, seed))
        for name in names:
            random = Random(f"{seed} {name} {fact.case.edit.id}")
            made = [replace(each, kind=name) for each in KINDS[name].make(fact, random, wordings)]
            questions += made
            left_out[name] += not made
    return Probes(tuple(questions), {name: left_out[name] for name in names if left_out[name]})


def _pattern(case: Case) -> frozenset[str]:
    """Return the words of a prompt beside its subject's."""
    edit = case.edit
    around = edit.prompt.replace(edit.subject, " ") if edit.subject else edit.prompt
    return frozenset(re.findall(r"\w+", around.casefold()))


def _third(fact: Fact, others: Sequence[tuple[Case, frozenset[str]]], seed: int) -> str | None:
    """Return the target of the case whose question is the likest, and whose target is another.

    A number stands beside numbers, a word beside words.
    """
    mine, known = _pattern(fact.case), [fact.new, *fact.case.truth]
    numbered = bool(re.search(r"\d", fact.new))

    def likeness(other: tuple[Case, frozenset[str]]) -> tuple[bool, float]:
        case, pattern = other
        same_kind = bool(re.search(r"\d", case.edit.target)) == numbered
        return same_kind, len(mine & pattern) / max(1, len(mine | pattern))

    apart = [other for other in others if not is_any(other[0].edit.target, known)]
    Random(f"{seed} third {fact.case.edit.id}").shuffle(apart)
    best = max(apart, key=likeness, default=None)
    return None if best is None else best[0].edit.target.strip().rstrip(".")


__all__ = ["ALL", "KINDS", "Fact", "Kind", "Probes", "Question", "check_kinds", "make_probes"]
