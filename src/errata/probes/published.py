"""Probes that the published file itself gives: alias, hop, same_subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from errata.cases import Probe
from errata.probes.forms import is_question
from errata.probes.question import Fact, Question


def alias(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Ask for the fact with the subject by a second name."""
    yield from _consequences(fact, "alias", random, wordings)


def hop(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Ask what follows from the edit by a further fact."""
    yield from _consequences(fact, "hop", random, wordings)


def same_subject(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Ask something else of the subject, in the edit's own form, so that form tells nothing."""
    probes = [
        probe
        for probe in fact.case.locality
        if probe.kind == "same_subject" and is_question(probe.prompt) == fact.asks
    ]
    for probe in _drawn(random, probes, wordings):
        yield fact.ask(probe.prompt, expects="as the base", raw=True)


def _consequences(fact: Fact, kind: str, random: Random, wordings: int) -> Iterator[Question]:
    probes = [probe for probe in fact.case.portability if probe.kind == kind and probe.answer]
    for probe in _drawn(random, probes, wordings):
        yield fact.ask(probe.prompt, wanted=(probe.answer or "", *probe.also), raw=True)


def _drawn(random: Random, probes: Sequence[Probe], count: int) -> list[Probe]:
    return random.sample(probes, min(count, len(probes)))
