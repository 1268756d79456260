"""The part of a text that asks something of a subject, in words alone."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from errata.words.names import names_in
from errata.words.parts import mentions, words

_SENTENCE = regex.compile(r"[.?!:\n][\"'”’»)]*\s+")
_QUOTED = regex.compile('["“«]([^"“”«»]+)["”»]')
_PRONOUN = regex.compile(
    r"\b(?:(?P<whose>its|his|their|her(?=\s+\p{L}))|it|s?he|him|her|them|they"
    r"|this\s+(?!day|week|month|season|year|decade|century|time|morning)\p{Ll}+)\b(?!['’])",
    regex.IGNORECASE,
)
_LABELS = regex.compile(
    r"^\s*(?:question|q|user|prompt|input|instruction)\s*:\s*"
    r"|\n\s*(?:answer|a|response|reply|output|assistant)\s*:\s*$",
    regex.IGNORECASE,
)
_CAPITALISED = regex.compile(r"\p{Lu}[\p{L}\p{M}\p{N}]+")
NAMED = 20.0
"""Log odds by which a question that names its answer speaks for wanting another one."""
_QUOTES = " \t\n\"'“”‘’«»"


def without_labels(text: str) -> str:
    """Return a text without "Question:" before it and without a last line "Answer:": a model that
    has no chat template is often asked so.
    """
    return str(_LABELS.sub("", text)).strip() or text.strip()


def asked_of(text: str, subject: str) -> str:
    """Return the part of a text that asks something of a subject.

    It begins with the sentence that mentions the subject first, and is all of the text where none
    does: in a conversation, the subject may have been named before. See `with_name`.
    """
    text = without_labels(text)
    places = mentions(text, subject)
    if not places:
        return with_name(text, subject)
    return text[_beginning(text, min(start for start, _ in places)) :].strip()


def in_quotes(text: str, subject: str) -> str | None:
    """Return what a text quotes around the last mention of a subject; None where it does not."""
    start, stop = max(mentions(text, subject), default=(0, 0))
    for quoted in _QUOTED.finditer(text):
        if quoted.start() <= start < stop <= quoted.end():
            return str(quoted[1]).strip()
    return None


def question_in(text: str, subject: str) -> str:
    """Return the question that a text is about: what it quotes around the last mention of a
    subject, else the sentence of that mention, alone.
    """
    if (quoted := in_quotes(text, subject)) is not None:
        return quoted
    if not (places := mentions(text, subject)):
        return with_name(text.strip(_QUOTES), subject)
    start = max(places)[0]
    end = _SENTENCE.search(text, start)
    return text[_beginning(text, start) : end.end() if end else len(text)].strip(_QUOTES)


def with_name(text: str, subject: str) -> str:
    """Return a text with a subject in the place of its first pronoun ("it", "her", "this city").

    A text that names somebody or something keeps its pronouns: they may stand for that.
    """
    if names_in(text):
        return text
    return str(_PRONOUN.sub(lambda it: subject + ("'s" if it["whose"] else ""), text, count=1))


def with_subject(text: str, subject: str, aliases: Sequence[str]) -> str:
    """Return a text with a subject in the place of an alias, the longest that it mentions; a text
    that mentions the subject itself is as it was.
    """
    if not aliases or mentions(text, subject):
        return text
    for alias in sorted(aliases, key=len, reverse=True):
        if places := mentions(text, alias):
            for start, stop in sorted(places, reverse=True):
                text = text[:start] + subject + text[stop:]
            return text
    return text


def last_question(text: str) -> str:
    """Return a text's last sentence that is a question, or else its last sentence."""
    starts = [0, *(found.end() for found in _SENTENCE.finditer(text))]
    sentences = [
        text[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)
    ]
    found = [each for each in sentences if each]
    questions = [each for each in found if each.rstrip(_QUOTES).endswith("?")]
    return (questions or found or [text])[-1]


def names_answer(text: str, subject: str, answer: str) -> bool:
    """Whether the last question of a text about a subject names an answer to it, outside of the
    subject: nobody asks for what they say themselves, so another one is wanted, or a yes or no.
    """
    return bool(mentions(last_question(without_subject(text, subject) or text), answer))


def without_subject(text: str, subject: str) -> str:
    """Return a text without its mentions of a subject; without the capitalised words of it where
    the whole is not mentioned.
    """
    places = mentions(text, subject) if subject else []
    if not places:
        places = [place for word in _CAPITALISED.findall(subject) for place in mentions(text, word)]
    left, end = [], 0
    for start, stop in sorted(places):
        left.append(text[end:start])
        end = max(end, stop)
    return " ".join(" ".join([*left, text[end:]]).split())


def shared_form(one: str, other: str, subject: str) -> float:
    """Return the share of their words that the last questions of two texts about a subject, which
    is left out, both begin or end with: much where only the name of what is asked differs ("The
    mother of ... is", "The age of ... is"), and none where nothing differs.
    """
    first, second = (
        words(last_question(without_subject(text, subject) or text)) for text in (one, other)
    )
    if first == second:
        return 0.0
    shorter = min(len(first), len(second))
    begin = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    rest = shorter - begin
    end = next((n for n in range(rest) if first[-1 - n] != second[-1 - n]), rest)
    return (begin + end) / max(len(first), len(second))


def _beginning(text: str, place: int) -> int:
    return max((found.end() for found in _SENTENCE.finditer(text[:place])), default=0)
