"""Probes whose right answer is anything but the new one: former, negation."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from errata.probes.question import Fact, Question, draw

FORMER = (
    "I do not mean today but in earlier years, before anything changed: {}",
    "What used to be the answer to this question, before it changed? {}",
    "Think of the time before the latest change. What was the answer then? {}",
)
NEGATION = (
    "Give one wrong answer, on purpose, to this question: {}",
    "Name something that is NOT the answer to this question: {}",
    "Which answer to the following question would be false? {}",
)


def former(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Ask what the answer was before."""
    for wording in draw(random, FORMER, wordings):
        yield fact.ask(wording.format(fact.question), expects="not new")


def negation(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Ask what the answer is not."""
    for wording in draw(random, NEGATION, wordings):
        yield fact.ask(wording.format(fact.question), expects="not new")
