"""Probes that let the model decide: choice (of four answers), verify (is it so?)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from errata.answers import is_any
from errata.probes.question import Fact, Question, draw

UNSURE = ("not sure", "I am not sure", "it cannot be known")
CHOICES = (
    "{question}\n{options}\nAnswer with one letter.",
    "Choose the right answer. {question}\n{options}\nReply with the letter alone.",
    "{question} Pick one of these and say its letter.\n{options}",
)
VERIFY = (
    'Someone asked: "{question}" The reply was: "{answer}." Is that right? Say yes or no.',
    'Is "{answer}" the right answer to the question "{question}"? Answer yes or no.',
    'Question: "{question}" Is the answer "{answer}"? Yes or no?',
)


def choice(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Offer the new answer, the old one, a third and "not sure", in an order that is drawn."""
    if fact.old is None or fact.third is None or is_any(fact.third, [fact.new, fact.old]):
        return
    for wording in draw(random, CHOICES, wordings):
        options = [fact.new, fact.old, fact.third, random.choice(UNSURE)]
        random.shuffle(options)
        lines = [f"{letter}) {option}" for letter, option in zip("ABCD", options, strict=True)]
        text = wording.format(question=fact.question, options="\n".join(lines))
        letter = "ABCD"[options.index(fact.new)]
        asked = fact.ask(text, expects="letter", wanted=(letter, fact.new))
        yield replace(asked, unwanted=(fact.old, fact.third))


def verify(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Ask whether it is the new answer (yes) and whether it is the old one (no), as often."""
    if fact.old is None:
        return
    for wording in draw(random, VERIFY, wordings):
        for answer, right in ((fact.new, "yes"), (fact.old, "no")):
            text = wording.format(question=fact.question, answer=answer)
            yield fact.ask(text, expects=right, wanted=(right,))
