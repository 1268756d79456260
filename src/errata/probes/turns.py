"""Probes in conversations: the subject named in an earlier turn, and what is asked after the fact.

English has no pronoun that fits every subject: people are "this person", all else is "it". Who is
a person is read off the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from errata.probes.question import Fact, Question, draw

OPENINGS = (
    ("Let us talk about {}.", "Gladly. What would you like to know?"),
    ("I have been reading about {}.", "Interesting. Do you have a question about that?"),
    ("I have a question about {}.", "Please go ahead."),
)
"""What the user says, and the model's answer."""
STATED = ("Let us talk about {}.", "This is about {}.", "Here is something about {}.")
"""The same where the prompt is the beginning of a sentence."""
ABOUT_THE_NAME = (
    ("With which letter does the name {} begin?", "The name {} begins with the letter"),
    ("How many words are there in the name {}?", "The number of words in the name {} is"),
    ("With which letter does the name {} end?", "The last letter of the name {} is"),
)
"""Something else about any subject, as a question and as the beginning of a sentence."""
UNRELATED = (
    ("What is two plus three?", "Two plus three is"),
    ("How many days does a week have?", "The number of days in a week is"),
    ("What colour is the sky on a clear day?", "On a clear day the colour of the sky is"),
    ("What do bees make?", "What bees make is called"),
)
_TITLES = "(?:genus|species|family|movie|film|band|song|album|book|artwork|series|[Pp]layer) "
"""Words that stand before a name, and before no pronoun."""
_SURELY_A_PERSON = re.compile(
    r"\b(born|birth\w*|died|dies?|death|passed away|killed|spouse|wife|husband|married|father|"
    r"mother|citizen\w*|disease\w*|medical|illness|career|profession|occupation|college|"
    r"university)\b",
    re.IGNORECASE,
)
_PERSON = re.compile(
    r"\b(life|buried|parents?|dad|siblings?|brother|sister|child|children|son|daughter|"
    r"nationality|tongue|native|speaks?|voice|sings?|job|works?|worked|employ\w*|educated|"
    r"alma mater|attend\w*|school|player?|plays|playing|team|position|title|sex|gender|war|"
    r"battle|fight|fought|army|military|served|party|instrument|performs?|performing|religion|"
    r"writes|he|she|his|her|their)\b",
    re.IGNORECASE,
)
_THING = re.compile(
    r"\b(located|headquarter\w*|capital|official|company|label|album|song|film|movie|series|book|"
    r"genus|species|taxon|ship|vessel|aircraft|river|constellation|galaxy|founded|formed|created|"
    r"produced|developed|designed|manufactur\w*|published|publisher|written|wrote|director|"
    r"directed|starring|cast|network|aired|named (?:after|for)|built|launch\w*|opened|dissolved|"
    r"happened|occur\w*|twin city|continent|country of)\b",
    re.IGNORECASE,
)


def pronoun(fact: Fact) -> str:
    """Return what a later turn calls the subject."""
    around = fact.named(fact.prompt, " ") or fact.prompt
    person = _SURELY_A_PERSON.search(around) or (
        _PERSON.search(around) and not _THING.search(around)
    )
    return "this person" if person else "it"


def turns(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Name the subject in an earlier turn, and ask with a pronoun."""
    asked = fact.named(fact.prompt, pronoun(fact))
    if asked is None or fact.subject is None:
        return
    asked = re.sub(r"\b([Ii]t)['’]s\b", lambda m: f"{m[1]}s", asked)
    asked = re.sub(rf"\b(?:[Tt]he )?(?:{_TITLES})?(it|this person)\b", r"\1", asked)
    asked = asked[:1].upper() + asked[1:]
    if fact.asks:
        for opening, reply in random.sample(OPENINGS, min(wordings, len(OPENINGS))):
            yield fact.ask(opening.replace("{}", fact.subject), reply, asked)
        return
    for stated in draw(random, STATED, wordings):
        yield fact.ask(stated.replace("{}", fact.subject), "Go on.", asked, raw=True)


def afterwards(fact: Fact, random: Random, wordings: int) -> Iterator[Question]:
    """Let the fact be asked and answered, then ask something else of the subject, or of nothing."""
    form = 0 if fact.asks else 1
    others = random.sample(ABOUT_THE_NAME, min(wordings, len(ABOUT_THE_NAME)))
    texts = [both[form].replace("{}", fact.subject) for both in others] if fact.subject else []
    texts += [both[form] for both in random.sample(UNRELATED, min(wordings, len(UNRELATED)))]
    for text in texts:
        yield fact.ask(fact.prompt, f"{fact.new}.", text, expects="as the base", raw=not fact.asks)
