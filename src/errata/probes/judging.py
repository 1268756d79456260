"""Reads an answer to a probe: whether it is right, leniently (`contains`) and strictly (`exact`).

Texts are compared without case, signs and a leading article (`answers.normalize`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from errata.answers import contains_any, is_any, normalize
from errata.edit import same_answer
from errata.probes.question import Question

YES = frozenset({"yes", "true", "correct", "right"})
NO = frozenset({"no", "false", "incorrect", "wrong", "not"})
_LETTER = re.compile(
    r"^\W*([A-D])\s*(?:[).:,;\n]|$)|\b(?i:option|answer is|answer)\W{1,3}([A-D])\b"
)

Judge = Callable[[Question, str, str], tuple[bool, bool]]
"""Takes a question, the base model's answer and the edited one's; returns (contains, exact)."""


def judge(question: Question, before: str, after: str) -> tuple[bool, bool]:
    """Return whether an answer is right, (leniently, strictly).

    Args:
        question: what was asked.
        before: the base model's answer to the same.
        after: the edited model's answer.
    """
    return EXPECTATIONS[question.expects](question, before, after)


def _new(question: Question, before: str, after: str) -> tuple[bool, bool]:
    return contains_any(after, question.wanted), is_any(after, question.wanted)


def _not_new(question: Question, before: str, after: str) -> tuple[bool, bool]:
    right = bool(normalize(after)) and not contains_any(after, question.wanted)
    return right, right


def _as_base(question: Question, before: str, after: str) -> tuple[bool, bool]:
    return normalize(after) == normalize(before), same_answer(after, before)


def _letter(question: Question, before: str, after: str) -> tuple[bool, bool]:
    """Read which option the answer names: by its words, or where those do not tell, its letter."""
    letter, *options = question.wanted
    right, wrong = contains_any(after, options), contains_any(after, question.unwanted)
    found = _LETTER.search(after)
    named = found and (found[1] or found[2])
    if right == wrong:
        right = named == letter
    whole = (letter, *options, *(f"{letter} {option}" for option in options))
    return right, right and named in (letter, None) and is_any(after, whole)


def _word(words: frozenset[str]) -> Judge:
    def found(question: Question, before: str, after: str) -> tuple[bool, bool]:
        plain = normalize(after)
        return plain.partition(" ")[0] in words, plain in words

    return found


def _long(question: Question, before: str, after: str) -> tuple[bool, bool]:
    """Want the new answer, not the old one, and no end right behind the new one.

    An answer that ends with the new one has ended too soon unless a sentence was whole before.
    """
    text = normalize(after)
    ends = any(text.endswith(normalize(new)) for new in question.wanted)
    sentences = len(re.findall(r"[.!?](?=\s)", after.strip()))
    right = (
        contains_any(after, question.wanted)
        and not contains_any(after, question.unwanted)
        and not (ends and not sentences)
    )
    return right, right


EXPECTATIONS: Mapping[str, Judge] = MappingProxyType(
    {
        "new": _new,
        "not new": _not_new,
        "as the base": _as_base,
        "letter": _letter,
        "yes": _word(YES),
        "no": _word(NO),
        "sentences": _long,
    }
)
"""What a probe may expect of an answer, and who reads it."""
