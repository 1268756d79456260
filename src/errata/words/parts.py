"""The words of a text, or its character runs in scripts without spaces; and mentions of names.

A name is mentioned by whole words: "Romeo" does not mention Rome, but "Kelor's" mentions Kelor. In
a script without spaces it is mentioned wherever its characters stand. `spelling.py` says which
texts read the same, `inflection.py` which words are forms of a name; `names.py` looks for many
names at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import regex

from errata.words.inflection import bases, keys_of
from errata.words.spelling import fold, fold_with_places

_UNSPACED = r"[[\p{L}\p{M}\p{N}]&&[\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}〆]]"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}--[\p{{Katakana}}ー\p{{Hangul}}]]"
_SPACED = (
    rf"[\p{{Katakana}}ー][\p{{Katakana}}ー\p{{M}}]*|[\p{{Hangul}}&&\p{{L}}]\p{{Hangul}}*"
    rf"|{_LETTER}+(?:\+\+|[+#](?![\p{{L}}\p{{N}}]))?|(?=[\p{{S}}--\p{{ASCII}}])\X"
)
_WORD = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|{_SPACED}")
_PART = regex.compile(rf"(?V1)(?P<run>{_UNSPACED}[{_UNSPACED}\p{{M}}ー]*)|{_SPACED}")
_PLAIN_PART = re.compile(r"[a-z0-9]+(?:\+\+|[+#](?![a-z0-9]))?")
_POSSESSIVE = regex.compile(r"(?<=[\p{L}\p{M}\p{N}]')s")
_LEADING, _CLOSING = frozenset("เแโใไເແໂໃໄ"), regex.compile(r"[\p{M}ะาำๅະາຳ]")
"""Characters that belong to the syllable of the next character, and of the one before."""


def words(text: str) -> list[str]:
    """Return the words of a text, folded; in a script without spaces each character is a word."""
    return [str(word) for word in _WORD.findall(fold(text))]


class Part(NamedTuple):
    """A word of a folded text, or a run of characters in a script without spaces (`run`).

    It stands at folded[start:end].
    """

    text: str
    start: int
    end: int
    run: bool


def parts_of(folded: str) -> list[Part]:
    """Split a folded text into parts; a possessive 's is left out, unless it is the only part."""
    if folded.isascii():  # the same parts, several times as fast
        found = [Part(part[0], *part.span(), False) for part in _PLAIN_PART.finditer(folded)]
    else:
        found = [
            Part(part[0], part.start(), part.end(), part["run"] is not None)
            for part in _PART.finditer(folded)
        ]
    kept = [
        part for part in found if not (part.text == "s" and _POSSESSIVE.match(folded, part.start))
    ]
    return kept or found


def inside(run: str, text: str) -> list[int]:
    """Return the indices where a run of characters stands in a text without cutting a syllable."""
    places, start = [], text.find(run)
    while start >= 0:
        end = start + len(run)
        if text[start - 1 : start] not in _LEADING and not _CLOSING.match(text, end):
            places.append(start)
        start = text.find(run, start + 1)
    return places


def stretches(name: Sequence[Part], text: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """Yield every stretch of a text's parts that mentions a name, part by part."""
    keys = [keys_of(part.text) for part in name]
    known: dict[str, set[str]] = {}
    last = len(name) - 1

    def matches(index: int, part: Part) -> bool:
        """Whether a part of the text mentions the part of the name with this index.

        A run must stand at the end of the text's run if it opens the name, at the start if it
        closes the name; anywhere if it is the whole name.
        """
        own = name[index]
        if own.run != part.run or own.text == part.text:
            return own.run == part.run
        if not own.run:
            if part.text not in known:
                known[part.text] = bases(part.text, lenient=True)
            return not keys[index].isdisjoint(known[part.text])
        places = inside(own.text, part.text)
        if last == 0:
            return bool(places)
        if index == 0:
            return len(part.text) - len(own.text) in places
        return index == last and 0 in places

    for first in range(len(text) - last) if name else ():
        if all(matches(index, text[first + index]) for index in range(len(name))):
            yield text[first : first + len(name)]


@lru_cache(maxsize=1 << 11)  # many edits have one subject, and are held against one prompt
def mentions(text: str, name: str) -> tuple[tuple[int, int], ...]:
    """Return (start, end) of every mention of a name in a text: all its words in sequence.

    Exact mentions come last, so that the last one is the best. An inflected ending is not part of
    the mention.
    """
    (folded, places), wanted = fold_with_places(text), parts_of(fold(name))
    found = []
    for stretch in stretches(wanted, parts_of(folded)):
        first, last = stretch[0], stretch[-1]
        exact = all(
            one.run or one.text == other.text for one, other in zip(wanted, stretch, strict=True)
        )
        if len(wanted) == 1 and last.run:
            spans = [
                (last.start + at, last.start + at + len(wanted[0].text))
                for at in inside(wanted[0].text, last.text)
            ]
        else:
            start = first.end - len(wanted[0].text) if first.run else first.start
            whole = last.text.startswith(wanted[-1].text)
            spans = [(start, last.start + len(wanted[-1].text) if whole else last.end)]
        found += [(exact, places[start][0], places[end - 1][1]) for start, end in spans]
    return tuple((start, end) for _, start, end in sorted(found))
