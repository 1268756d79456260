"""`Question`: what a probe asks, in one turn or several, and what answer is right after the edit.

It is made from a `Fact`, the part of a case that probes are about. No model is needed here;
`conversation.py` puts a question into a model's own form, `judging.py` reads the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random

from errata.answers import contains_any
from errata.cases import Case
from errata.probes.forms import as_question, is_question
from errata.words.parts import mentions

ANSWER_LENGTH, LONG_ANSWER_LENGTH = 24, 60
"""Tokens after which an answer is cut, and one of several sentences."""


@dataclass(frozen=True)
class Question:
    """One probe of an edit.

    Attributes:
        kind: a name of `KINDS`.
        edit_id: the edit that it judges.
        turns: the user's words and the model's, by turns; the first and the last are the user's.
        expects: what is right, a name of `judging.EXPECTATIONS`.
        wanted: what is expected: answers that are the same, or a letter and its option.
        unwanted: answers that must not be said.
        raw: the last turn is given as it stands to a model without a chat template, as the edit's
            own prompt is; otherwise as a line that asks, before a line for the answer.
        long: several sentences are asked for.
    """

    kind: str
    edit_id: str
    turns: tuple[str, ...]
    expects: str
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()
    raw: bool = False
    long: bool = False


@dataclass(frozen=True)
class Fact:
    """What an edit says, for probes to ask about.

    Attributes:
        case: the edit with the published probes.
        third: another edit's target, of a question as like this one's as there is; None if none is.
    """

    case: Case
    third: str | None = None

    @property
    def prompt(self) -> str:
        """The edit's own prompt."""
        return self.case.edit.prompt

    @property
    def new(self) -> str:
        """The edit's target, without its full stop."""
        return self.case.edit.target.strip().rstrip(".")

    @property
    def subject(self) -> str | None:
        """Who or what the fact is about, as it stands in the prompt."""
        return self.case.edit.subject

    @cached_property
    def old(self) -> str | None:
        """An answer that was right before and is told apart from the new one; None if none is."""
        return next(
            (
                truth
                for truth in self.case.truth
                if not contains_any(truth, [self.new]) and not contains_any(self.new, [truth])
            ),
            None,
        )

    @property
    def asks(self) -> bool:
        """Whether the prompt is a question, rather than the beginning of a sentence."""
        return is_question(self.prompt)

    @cached_property
    def question(self) -> str:
        """The fact as a question."""
        return self.prompt.strip() if self.asks else as_question(self.prompt, self.subject)

    def named(self, text: str, name: str) -> str | None:
        """Return a text with another name for the subject; None where it does not name it."""
        if not self.subject or not (found := mentions(text, self.subject)):
            return None
        start, end = found[0]
        return text[:start] + name + text[end:]

    def ask(
        self,
        *turns: str,
        expects: str = "new",
        wanted: tuple[str, ...] = (),
        raw: bool = False,
        long: bool = False,
    ) -> Question:
        """Return a question about this fact; the new answer is wanted unless another is given."""
        unwanted = () if self.old is None else (self.old,)
        edit_id, wanted = self.case.edit.id, wanted or (self.new,)
        return Question("", edit_id, turns, expects, wanted, unwanted, raw, long)


Make = Callable[[Fact, Random, int], Iterator[Question]]
"""Makes the questions of one kind about a fact, in so many wordings; none where it lacks
something.
"""


@dataclass(frozen=True)
class Kind:
    """A kind of probe.

    Attributes:
        name: what it is called.
        asks: what is asked.
        right: the right answer.
        make: makes its questions.
    """

    name: str
    asks: str
    right: str
    make: Make


def draw(random: Random, wordings: tuple[str, ...], count: int) -> list[str]:
    """Return so many of the wordings, or all there are."""
    return random.sample(wordings, min(count, len(wordings)))
