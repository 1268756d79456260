"""Probes that ask the fact itself in other words: form, distractor, long."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from errata.probes.forms import as_completion
from errata.probes.question import Fact, Question, draw

ASIDES = (
    "The train to the coast was late again this morning.",
    "It has rained for three days, and the garden is under water.",
    "My neighbour keeps bees and gives me a jar of honey every autumn.",
    "The library closes at six on Saturdays.",
    "We painted the kitchen yellow last week.",
    "There are still two seats left for the concert tonight.",
)
"""Sentences about nothing that is edited."""
NEWS = (
    "{} has been in the news lately.",
    "Somebody mentioned {} to me yesterday.",
    "I came across {} again last night.",
    "A friend of mine is writing an essay about {}.",
)
"""Sentences that are true of any subject."""
LONG = (
    "Write two or three sentences about {subject}. They should also answer this question: "
    "{question}",
    "Tell me a little about {subject}, in two or three sentences, and answer this among other "
    "things: {question}",
    "In two or three sentences, introduce {subject} to a reader who wonders: {question}",
)
STATEMENTS = (
    "Tell me in a full sentence: {}",
    "Please answer briefly. {}",
    "Do you happen to know? {}",
)
"""Further wordings of a sentence that was turned into a question."""


def form(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Ask in the other form: a sentence to complete for a question, and back."""
    if fact.asks:
        yield fact.ask(as_completion(fact.prompt, fact.subject), raw=True)
        return
    yield fact.ask(fact.question, raw=True)
    for wording in draw(random, STATEMENTS, wordings - 1):
        yield fact.ask(wording.format(fact.question), raw=True)


def distractor(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Put a sentence before the prompt: about something else, and about the subject."""
    for aside in draw(random, ASIDES, wordings):
        yield fact.ask(f"{aside} {fact.prompt}", raw=True)
    if fact.subject:
        for news in draw(random, NEWS, wordings):
            sentence = news.replace("{}", fact.subject)
            yield fact.ask(f"{sentence[:1].upper()}{sentence[1:]} {fact.prompt}", raw=True)


def long(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Ask for sentences about the subject that tell the fact, too."""
    if fact.subject:
        for wording in draw(random, LONG, wordings):
            text = wording.format(subject=fact.subject, question=fact.question)
            yield fact.ask(text, expects="sentences", long=True)
