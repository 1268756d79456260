"""Which words tell something: rare ones. And which stored names a text mentions. It knows no model."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")


def words(text: str) -> list[str]:
    """The words of a text, in small letters; where a script has no spaces, each sign is one."""
    return _WORD.findall(text.lower())


class WordWeights:
    """How much a word tells: log((n + 1) / (texts with it + 1)) over n texts, relative to that of a word never seen.

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


class Mentions:
    """Names under numbers, and which of them a text mentions, by an inverted index.

    A name stands in the index under its heaviest words only, as many as a text that mentions it cannot lack all of; so
    common words are seldom looked up, and a lookup does not grow with the names.

    Args:
        weights: of the words.
        least: the share of a name, by weight, that a text must hold to mention it.
    """

    def __init__(self, weights: WordWeights, least: float) -> None:
        self.weights, self.least = weights, least
        self._names: dict[int, frozenset[str]] = {}
        self._by_word: dict[str, set[int]] = defaultdict(set)

    def add(self, number: int, name: str) -> None:
        """Store a name."""
        found = frozenset(words(name))
        self._names[number] = found
        for word in self._telling(found):
            self._by_word[word].add(number)

    def remove(self, number: int) -> None:
        """Forget a name.

        Raises:
            KeyError: there is none under this number.
        """
        for word in self._telling(self._names.pop(number)):
            self._by_word[word].discard(number)
            if not self._by_word[word]:
                del self._by_word[word]

    def within(self, text: str) -> dict[int, float]:
        """The names that a text mentions: number -> share, by weight.

        What has a digit in it must be there: a DC-2 is no DC-3.
        """
        there = set(words(text))
        shares: dict[int, float] = {}
        for number in set().union(*(self._by_word[word] for word in there & self._by_word.keys())):
            name = self._names[number]
            share = self.weights.share(name, there)
            if share >= self.least and not any(word for word in name - there if any(sign.isdigit() for sign in word)):
                shares[number] = share
        return shares

    def _telling(self, name: frozenset[str]) -> list[str]:
        """The heaviest words, which together weigh more than may be missing."""
        missing = (1 - self.least) * math.fsum(self.weights[word] for word in name)
        found: list[str] = []
        weight = 0.0
        for word in sorted(name, key=lambda word: (-self.weights[word], word)):
            if weight > missing + 1e-9:
                break
            found.append(word)
            weight += self.weights[word]
        return found
