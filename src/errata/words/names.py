"""Which words tell something: rare ones. And which stored names a text mentions. It knows no model.

What a word is, and where a name stands, is in `parts`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import regex

from errata.words.inflection import bases, keys_of
from errata.words.parts import Part, inside, parts_of, stretches, words
from errata.words.spelling import fold, fold_with_places

__all__ = ["Mentions", "WordWeights", "words"]

_ONE_LETTER, _TELLING = regex.compile(r"\p{L}\p{M}*"), regex.compile(r"^\p{L}\p{M}*$|\p{N}|[+#]$")
"""One letter; and what must be there as it is: one letter, a number, a C++."""
_ROMAN = regex.compile(r"(?=[mdclxvi])m{0,3}(?:c[md]|d?c{0,3})(?:x[cl]|l?x{0,3})(?:i[xv]|v?i{0,3})")
_RUN_KEY = 8
"""A name in a script without spaces is looked up by so many of its signs, the first."""


class WordWeights:
    """How much a word tells: log((n + 1) / (texts with it + 1)) over n texts, relative to that of a
    word never seen.

    Args:
        counts: in how many of the texts each word stands.
        texts: how many they are.
    """

    def __init__(self, counts: Mapping[str, int], texts: int) -> None:
        self.counts, self.texts = dict(counts), texts
        self._most = math.log(texts + 1) or 1.0

    @classmethod
    def over(cls, texts: Iterable[str]) -> WordWeights:
        """Counted over texts."""
        counts: dict[str, int] = defaultdict(int)
        n = 0
        for text in texts:
            n += 1
            for word in set(words(text)):
                counts[word] += 1
        return cls(counts, n)

    def __getitem__(self, word: str) -> float:
        """The word's weight: 1 where it was never seen, never quite 0."""
        return max(0.01, math.log((self.texts + 1) / (self.counts.get(word, 0) + 1)) / self._most)

    def share(self, wanted: Iterable[str], there: Iterable[str]) -> float:
        """How much of the wanted words is there, by weight: 0 to 1."""
        wanted, there = set(wanted), set(there)
        whole = math.fsum(self[word] for word in wanted)
        return math.fsum(self[word] for word in wanted & there) / whole if whole else 0.0


class _Name:
    """A stored name, ready to be looked for.

    Attributes:
        forms: its words -> the keys (`inflection`) of which a text must hold one.
        runs: those of them that are runs of signs.
        exact: words that must stand there as they are, or as they are shown -> words one of which
            must stand beside them. A small letter before other words (a tower, Ortega y Gasset) is
            none.
        weights: of the words, in their order.
    """

    def __init__(self, name: str, shown: str, weights: WordWeights) -> None:
        parts, there = parts_of(fold(name)), parts_of(fold(shown))
        self.forms: dict[str, set[str]] = {}
        self.runs = {part.text for part in parts if part.run}
        seen = list(stretches(parts, there))
        for place, part in enumerate(parts):
            forms = self.forms.setdefault(
                part.text, {part.text[:_RUN_KEY]} if part.run else {*keys_of(part.text)}
            )
            if not part.run:
                forms.update(stretch[place].text for stretch in seen)
        telling = [
            part.text for part in parts if _TELLING.search(part.text) or _ROMAN.fullmatch(part.text)
        ]
        small = _small_letters(name, parts[:-1]) if telling else set()
        self.exact: dict[str, set[str]] = {
            word: set() for word in telling if word not in self.runs | small
        }
        for one, other in pairwise(parts if seen else ()):
            for each, beside in ((one, other), (other, one)):
                if each.text in self.exact and _ONE_LETTER.fullmatch(each.text):
                    self.exact[each.text].add(beside.text)
        self.weights = [
            math.fsum(weights[sign] for sign in words(text)) if text in self.runs else weights[text]
            for text in self.forms
        ]
        self.whole = math.fsum(self.weights)

    def telling(self, missing: float) -> set[str]:
        """The keys of the heaviest words, which together weigh more than the share that may be
        missing.
        """
        found: set[str] = set()
        weight = 0.0
        for word, own in sorted(
            zip(self.forms, self.weights, strict=True), key=lambda each: (-each[1], each[0])
        ):
            if weight > missing * self.whole + 1e-9:
                break
            found |= self.forms[word]
            weight += own
        return found

    def share(self, text: _Text) -> float:
        """How much of the name a text mentions, by weight; 0 where something is missing that must
        be there.
        """
        for word, beside in self.exact.items():
            near = text.beside(self.forms[word])
            if not near or (
                beside and not any(self._holds(each, part) for each in beside for part in near)
            ):
                return 0.0
        held = [
            weight
            for (word, forms), weight in zip(self.forms.items(), self.weights, strict=True)
            if (text.holds(word) if word in self.runs else not forms.isdisjoint(text.keys))
        ]
        return math.fsum(held) / self.whole if self.whole else 0.0

    def _holds(self, word: str, part: Part) -> bool:
        """Whether a part of a text is a form of a word."""
        if word in self.runs:
            return part.run and bool(inside(word, part.text))
        return not part.run and not self.forms[word].isdisjoint(bases(part.text))


def _small_letters(name: str, parts: Sequence[Part]) -> set[str]:
    """Those of a name's parts that are one small letter."""
    _, places = fold_with_places(name)
    return {
        part.text for part in parts if len(part.text) == 1 and name[places[part.start][0]].islower()
    }


class _Text:
    """A text in which names are looked for.

    Attributes:
        words: those that stand in it.
        keys: what it is looked up by: the words, all that they may be forms of, and pieces of its
            runs of signs.
    """

    def __init__(self, text: str, lengths: Iterable[int]) -> None:
        self._parts = parts_of(fold(text))
        self._runs = [part.text for part in self._parts if part.run]
        self.words = {part.text for part in self._parts if not part.run}
        self.keys = {key for word in self.words for key in bases(word)}
        for size in lengths:
            self.keys.update(
                run[at : at + size] for run in self._runs for at in range(len(run) - size + 1)
            )

    def holds(self, run: str) -> bool:
        """Whether a run of signs stands in it."""
        return any(inside(run, each) for each in self._runs)

    def beside(self, forms: set[str]) -> list[Part]:
        """What stands before and behind words of these forms, wherever one stands; [] where none
        does.
        """
        ends = [_NOTHING, *self._parts, _NOTHING]
        return [
            part
            for before, each, behind in zip(ends, ends[1:], ends[2:], strict=False)
            if each.text in forms and not each.run
            for part in (before, behind)
        ]


_NOTHING = Part("", 0, 0, False)


class Mentions:
    """Names under numbers, and which of them a text mentions, by an inverted index.

    A name stands in the index under its heaviest words only, as many as a text that mentions it
    cannot lack all of; so common words are seldom looked up, and a lookup does not grow with the
    names.

    Args:
        weights: of the words.
        least: the share of a name, by weight, that a text must hold to mention it.
    """

    def __init__(self, weights: WordWeights, least: float) -> None:
        self.weights, self.least = weights, least
        self._names: dict[int, _Name] = {}
        self._by_key: dict[str, set[int]] = defaultdict(set)
        self._lengths: Counter[int] = Counter()

    def add(self, number: int, name: str, shown: str = "") -> None:
        """Store a name; `shown` is a text that mentions it, and shows the forms that it takes."""
        made = self._names[number] = _Name(name, shown or name, self.weights)
        self._lengths.update(min(len(run), _RUN_KEY) for run in made.runs)
        for key in made.telling(1 - self.least):
            self._by_key[key].add(number)

    def remove(self, number: int) -> None:
        """Forget a name.

        Raises:
            KeyError: there is none under this number.
        """
        gone = self._names.pop(number)
        self._lengths.subtract(min(len(run), _RUN_KEY) for run in gone.runs)
        for key in gone.telling(1 - self.least):
            self._by_key[key].discard(number)
            if not self._by_key[key]:
                del self._by_key[key]

    def within(self, text: str) -> dict[int, float]:
        """The names that a text mentions: number -> share, by weight.

        Numbers and single letters must be there: a DC-2 is no DC-3, and John Paul II no John Paul
        I.
        """
        said = _Text(text, +self._lengths)
        shares: dict[int, float] = {}
        for number in set().union(*(self._by_key[key] for key in said.keys & self._by_key.keys())):
            share = self._names[number].share(said)
            if share and share >= self.least:
                shares[number] = share
        return shares
