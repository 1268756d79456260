"""A text's words and, where a script has no spaces, its runs of signs; and where a name stands
among them.

A name is mentioned by words, not by signs: "Romeo" mentions no Rome, but "Kelor's" a Kelor. What
may be joined to one is in `inflection`, what is spelled alike in `spelling`. Where a script has no
spaces, a name is mentioned where its signs stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
"""Signs that belong to the syllable of the sign behind them, and of that before."""


def words(text: str) -> list[str]:
    """The words of a text, in one spelling; where a script has no spaces, each sign is one."""
    return [str(word) for word in _WORD.findall(fold(text))]


class Part(NamedTuple):
    """A word, or a run of signs of a script without spaces, and where it stands in a folded text."""

    text: str
    start: int
    end: int
    run: bool


def parts_of(folded: str) -> list[Part]:
    """The parts of a folded text, a possessive 's left out where there is something else."""
    if folded.isascii():  # the same, and several times as fast
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
    """Where a run of signs stands in a longer one without cutting a syllable."""
    places, start = [], text.find(run)
    while start >= 0:
        end = start + len(run)
        if text[start - 1 : start] not in _LEADING and not _CLOSING.match(text, end):
            places.append(start)
        start = text.find(run, start + 1)
    return places


def stretches(name: Sequence[Part], text: Sequence[Part]) -> Iterator[Sequence[Part]]:
    """The parts of a text in which those of a name stand, one behind the other."""
    keys = [keys_of(part.text) for part in name]
    known: dict[str, set[str]] = {}

    def stands(place: int, other: Part) -> bool:
        """Whether a part of the name stands in one of the text: where it is a run, at its end,
        beginning or anywhere.
        """
        one = name[place]
        if one.run != other.run or one.text == other.text:
            return one.run == other.run
        opens, closes = place == 0, place == len(name) - 1
        if not one.run:
            if other.text not in known:
                known[other.text] = bases(other.text, bold=True)
            return not keys[place].isdisjoint(known[other.text])
        if opens and closes:
            return bool(inside(one.text, other.text))
        return (opens or closes) and (len(other.text) - len(one.text) if opens else 0) in inside(
            one.text, other.text
        )

    for first in range(len(text) - len(name) + 1) if name else ():
        if all(stands(place, text[first + place]) for place in range(len(name))):
            yield text[first : first + len(name)]


def mentions(text: str, name: str) -> list[tuple[int, int]]:
    """(start, end) of every place in a text where a name stands: all its words, one behind the
    other.

    Where it stands as it is written comes last, so that the last place is the best. An ending that
    is joined to the name is no part of the place.
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
    return [(start, end) for _, start, end in sorted(found)]
