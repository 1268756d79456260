"""`Mention`: how a prompt mentions a leaf's subject; `Match`: whether it asks for the leaf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from errata.methods.association.folio.intents import DESCRIBE, EXCLUDE, READ
from errata.methods.association.folio.leaf import Candidate, Leaf
from errata.methods.association.folio.question_reader import Question
from errata.words.questions import (
    NAMED,
    asked_of,
    in_quotes,
    names_answer,
    question_in,
    shared_form,
    with_subject,
)

READ_FROM = 0.3
"""How surely the question that is to be verified or chosen for is the edit's, for its fact to be
read.
"""


@dataclass(frozen=True)
class Mention:
    """How a prompt mentions a leaf's subject.

    Attributes:
        number: the leaf's number.
        leaf: the leaf.
        overlap: the share of the subject that is mentioned, see `Candidate.subject_overlap`.
        asked, about: see `asked_of` and `question_in`; the subject stands in its aliases' place.
        quoted: whether `about` stands in quotes.
        by_alias: whether the prompt has an alias in the subject's place.
        names_answer: whether its question names what the edit would answer, and the edit's own
            prompt does not: "The capital, which is not Oslo, is".
    """

    number: int
    leaf: Leaf
    overlap: float
    asked: Question
    about: Question
    quoted: bool
    by_alias: bool
    names_answer: bool

    @classmethod
    def of(cls, prompt: str, number: int, leaf: Leaf, overlap: float, says: Leaf) -> Mention:
        """Return how a prompt mentions a leaf's subject.

        Args:
            prompt: the prompt.
            number: the leaf's number.
            leaf: the leaf.
            overlap: the share of the subject that is mentioned.
            says: the leaf whose answer is said where the prompt asks for this one.
        """
        text = with_subject(prompt, leaf.subject, leaf.edit.aliases)
        asked, about = (
            Question(part(text, leaf.subject), leaf.subject) for part in (asked_of, question_in)
        )
        quoted = in_quotes(text, leaf.subject) is not None
        named, own = (
            names_answer(part, leaf.subject, says.edit.target) for part in (asked.text, leaf.asked)
        )
        return cls(number, leaf, overlap, asked, about, quoted, text != prompt, named and not own)

    @property
    def forms(self) -> tuple[float, float]:
        """The share of the form that `asked` and `about` have in common with the leaf's prompt."""
        asked, about = (
            shared_form(part.text, self.leaf.asked, self.leaf.subject)
            for part in (self.asked, self.about)
        )
        return asked, about

    def match(self, same: Sequence[float], odds: Sequence[float]) -> Match:
        """Return what it amounts to.

        Args:
            same: how surely `asked` and `about` ask what the leaf's prompt asks.
            odds: the log odds of each intent.
        """
        own = self.leaf.asked
        asked, about = same
        is_own = self.asked.text == own
        if self.quoted:  # 'The answer to "..." is'
            asked, is_own = max(same), is_own or self.about.text == own
        intent = max(range(len(odds)), key=odds.__getitem__)
        intent_odds = odds[self.leaf.intent]
        if self.names_answer and intent not in READ:
            intent, intent_odds = EXCLUDE, intent_odds - NAMED
        is_about = self.about.text == own or about >= READ_FROM
        found = Candidate(
            self.number,
            self.leaf.edit.id,
            self.overlap,
            1.0 if is_own else asked,
            intent,
            intent_odds,
            int(is_own),
            intent in READ and (intent == DESCRIBE or is_about),
        )
        return Match(self, is_own, found)


@dataclass(frozen=True)
class Match:
    """What a mention amounts to before the base model has begun its answer.

    Attributes:
        mention: the mention.
        is_own: whether it is the edit's own prompt; what the base model predicts does not count.
        candidate: the leaf as one that the prompt may ask for.
    """

    mention: Mention
    is_own: bool
    candidate: Candidate

    @property
    def best(self) -> Candidate:
        """The candidate where the predictions agree."""
        return replace(self.candidate, prediction=1)

    def predicted(self, prediction: int) -> Candidate:
        """Return the candidate with a prediction, see `Candidate`."""
        if self.is_own:
            return self.candidate
        if self.mention.by_alias:  # which the base model may not know
            prediction = max(prediction, 0)
        return replace(self.candidate, prediction=prediction)
