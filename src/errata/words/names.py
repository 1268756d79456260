"""`WordWeights`: how rare words are; `NameIndex`: finds stored names in a text; `names_in` a text.

What a word is, and what mentions a name, is decided in `parts.py`. Nothing here knows a model.
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

_ONE_LETTER = regex.compile(r"\p{L}\p{M}*")
_DISTINCTIVE = regex.compile(r"^\p{L}\p{M}*$|\p{N}|[+#]$")
"""Words that a mention must contain: one letter, a number, a C++."""
_ROMAN = regex.compile(r"(?=[mdclxvi])m{0,3}(?:c[md]|d?c{0,3})(?:x[cl]|l?x{0,3})(?:i[xv]|v?i{0,3})")
_RUN_KEY = 8
"""Leading characters by which a name in a script without spaces is looked up."""
_WORD = regex.compile(r"\p{M}*[\p{L}\p{N}_][\p{L}\p{M}\p{N}_'’-]*")
_OPENERS = frozenset(
    "who what when where which whose how in on at by of the a an is was are were did does".split()
) | {"name"}


class WordWeights:
    """Inverse document frequencies of words, divided by that of a word in no text.

    The frequency is log((n + 1) / (texts with the word + 1)) over n texts.

    Args:
        counts: word -> number of texts that contain it.
        texts: number of texts.
    """

    def __init__(self, counts: Mapping[str, int], texts: int) -> None:
        self.counts, self.texts = dict(counts), texts
        self._most = math.log(texts + 1) or 1.0

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> WordWeights:
        """Count the words of texts."""
        return cls(Counter(word for text in texts for word in set(words(text))), len(texts))

    def __getitem__(self, word: str) -> float:
        """Return the word's weight, from 0.01 to 1; 1 if no text contains it."""
        return max(0.01, math.log((self.texts + 1) / (self.counts.get(word, 0) + 1)) / self._most)

    def share(self, wanted: Iterable[str], present: Iterable[str]) -> float:
        """Return the share of the wanted words that are present, by weight: 0 to 1."""
        wanted = set(wanted)
        total = math.fsum(self[word] for word in wanted)
        shared = math.fsum(self[word] for word in wanted.intersection(present))
        return shared / total if total else 0.0


class _Name:
    """A stored name, prepared for lookup.

    Attributes:
        forms: each word -> its keys (see `inflection.py`), one of which a mention must have.
        runs: the words that are runs of characters in a script without spaces.
        required: words without which a text does not mention the name (letters, numbers, a C++) ->
            words one of which must stand next to them. A lower-case letter before other words (a
            tower, Ortega y Gasset) is not required.
        weights: of the words, in the order of `forms`.
        total: their sum.
    """

    def __init__(self, name: str, example: str, weights: WordWeights) -> None:
        parts = parts_of(fold(name))
        mentions = list(stretches(parts, parts_of(fold(example))))
        self.runs = {part.text for part in parts if part.run}
        self.forms: dict[str, set[str]] = {}
        for index, part in enumerate(parts):
            keys = {part.text[:_RUN_KEY]} if part.run else {*keys_of(part.text)}
            forms = self.forms.setdefault(part.text, keys)
            if not part.run:
                forms.update(mention[index].text for mention in mentions)
        self.required = self._required(name, parts, bool(mentions))
        self.weights = [
            math.fsum(weights[c] for c in words(text)) if text in self.runs else weights[text]
            for text in self.forms
        ]
        self.total = math.fsum(self.weights)

    def _required(self, name: str, parts: Sequence[Part], mentioned: bool) -> dict[str, set[str]]:
        distinctive = [
            part.text
            for part in parts
            if _DISTINCTIVE.search(part.text) or _ROMAN.fullmatch(part.text)
        ]
        optional = self.runs | (_lower_case_letters(name, parts[:-1]) if distinctive else set())
        required: dict[str, set[str]] = {
            word: set() for word in distinctive if word not in optional
        }
        for first, second in pairwise(parts if mentioned else ()):
            for part, neighbour in ((first, second), (second, first)):
                if part.text in required and _ONE_LETTER.fullmatch(part.text):
                    required[part.text].add(neighbour.text)
        return required

    def index_keys(self, missing: float) -> set[str]:
        """Return keys of the heaviest words, whose weight exceeds the share that may be missing."""
        keys: set[str] = set()
        weight = 0.0
        weighted = zip(self.forms, self.weights, strict=True)
        for word, own in sorted(weighted, key=lambda pair: (-pair[1], pair[0])):
            if weight > missing * self.total + 1e-9:
                break
            keys |= self.forms[word]
            weight += own
        return keys

    def share(self, text: _Text) -> float:
        """The share of the name in a text, by weight; 0 if a required word is missing."""
        for word, neighbours in self.required.items():
            beside = text.beside(self.forms[word])
            if not beside or (
                neighbours
                and not any(self._is_form(part, each) for each in neighbours for part in beside)
            ):
                return 0.0
        mentioned = [
            weight
            for (word, forms), weight in zip(self.forms.items(), self.weights, strict=True)
            if (text.has_run(word) if word in self.runs else not forms.isdisjoint(text.keys))
        ]
        return math.fsum(mentioned) / self.total if self.total else 0.0

    def _is_form(self, part: Part, word: str) -> bool:
        """Whether a part of a text is a form of one of the name's words."""
        if word in self.runs:
            return part.run and bool(inside(word, part.text))
        return not part.run and not self.forms[word].isdisjoint(bases(part.text))


def _lower_case_letters(name: str, parts: Sequence[Part]) -> set[str]:
    """The parts of a name that are one lower-case letter."""
    _, places = fold_with_places(name)
    return {
        part.text for part in parts if len(part.text) == 1 and name[places[part.start][0]].islower()
    }


class _Text:
    """A text in which names are looked up.

    Args:
        text: the text.
        lengths: the lengths of the keys of runs.

    Attributes:
        keys: of all its words and of the words they may be forms of, and the pieces of its runs of
            these lengths.
    """

    def __init__(self, text: str, lengths: Iterable[int]) -> None:
        self._parts = parts_of(fold(text))
        self._runs = [part.text for part in self._parts if part.run]
        words = {part.text for part in self._parts if not part.run}
        self.keys = {key for word in words for key in bases(word)}
        for size in lengths:
            self.keys.update(
                run[at : at + size] for run in self._runs for at in range(len(run) - size + 1)
            )

    def has_run(self, run: str) -> bool:
        """Whether a run of characters stands in it."""
        return any(inside(run, each) for each in self._runs)

    def beside(self, forms: set[str]) -> list[Part]:
        """The parts before and after every word of these forms; [] if there is no such word."""
        padded = [_NOTHING, *self._parts, _NOTHING]
        return [
            part
            for before, word, after in zip(padded, padded[1:], padded[2:], strict=False)
            if word.text in forms and not word.run
            for part in (before, after)
        ]


_NOTHING = Part("", 0, 0, False)


class NameIndex:
    """An inverted index of numbered names, which finds those that a text mentions.

    A number may have several names; a text mentions it by any of them. A name is indexed by its
    heaviest words only, as many as are needed for every text that mentions it to contain one of
    them. So common words are seldom looked up, and a lookup does not slow down with the number of
    names.

    Args:
        weights: of the words.
        min_share: the share of a name, by weight, that a text must contain to mention it.
    """

    def __init__(self, weights: WordWeights, min_share: float) -> None:
        self.weights, self.min_share = weights, min_share
        self._names: dict[int, list[_Name]] = defaultdict(list)
        self._by_key: dict[str, set[int]] = defaultdict(set)
        self._lengths: Counter[int] = Counter()

    def add(self, number: int, name: str, example: str = "") -> None:
        """Store a name; `example` is a text that mentions it, maybe in inflected forms."""
        stored = _Name(name, example or name, self.weights)
        self._names[number].append(stored)
        self._lengths.update(min(len(run), _RUN_KEY) for run in stored.runs)
        for key in stored.index_keys(1 - self.min_share):
            self._by_key[key].add(number)

    def remove(self, number: int) -> None:
        """Remove a number's names.

        Raises:
            KeyError: there is no name with this number.
        """
        for name in self._names.pop(number):
            self._lengths.subtract(min(len(run), _RUN_KEY) for run in name.runs)
            for key in name.index_keys(1 - self.min_share):
                self._by_key[key].discard(number)
                if not self._by_key[key]:
                    del self._by_key[key]

    def find(self, text: str) -> dict[int, float]:
        """Return the numbers whose names a text mentions: number -> share, by weight.

        Numbers and single letters of a name must occur: a DC-2 is not a DC-3, and John Paul II is
        not John Paul I.
        """
        parsed = _Text(text, +self._lengths)
        keys = parsed.keys & self._by_key.keys()
        shares: dict[int, float] = {}
        for number in set().union(*(self._by_key[key] for key in keys)):
            share = max(name.share(parsed) for name in self._names[number])
            if share and share >= self.min_share:
                shares[number] = share
        return shares


def names_in(text: str) -> list[str]:
    """Return a text's names: runs of capitalised words, without capitals of sentence starts."""
    names: list[str] = []
    end = -1
    for word in _WORD.finditer(text):
        if not word[0][0].isupper():
            continue
        before, following = text[: word.start()].rstrip(), text[word.end() :].lstrip()[:1]
        opens = not before or before[-1] in ".?!:"
        if names and word.start() == end + 1 and text[end] == " ":
            names[-1] += f" {word[0]}"
        elif opens and (word[0].lower() in _OPENERS or not following.isupper()):
            continue
        else:
            names.append(word[0])
        end = word.end()
    return list(dict.fromkeys(name for name in names if len(name) > 2))
