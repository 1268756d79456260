"""Invented names, unique and pronounceable, from a seeded generator, and lists of other answers."""

from __future__ import annotations

import random

_ONSETS = "b d f g h k l m n p r s t v z br dr gr kr pl st tr sh th".split()
_VOWELS = "a e i o u".split()
_CODAS = ["", "", "n", "r", "l", "s", "k", "m", "v"]
_ENDINGS = {
    "country": ["ia", "land", "mark", "ovia", "una"],
    "language": ["ish", "ese", "ic", "ian"],
    "currency": ["o", "el", "ar", "it"],
    "given": ["a", "o", "in", "el", "is", "us"],
}

COMPANY_FORMS = ("Group", "Works", "Mills", "Motors", "Brothers", "Foundry", "Labs", "Lines")
INSTITUTION_FORMS = ("Academy", "Institute", "University", "College")
LANDMARK_KINDS = ("river", "mountain", "lake", "forest")
WORK_KINDS = ("book", "film", "song", "opera")

OCCUPATIONS = tuple(
    "baker surgeon lawyer sailor painter teacher carpenter reporter pilot farmer chemist dancer "
    "librarian miller singer tailor cook jeweler judge plumber sculptor translator beekeeper "
    "weaver blacksmith nurse photographer geologist locksmith gardener".split()
)
SPECIALTIES = tuple(
    "glass cheese bells carpets honey clocks pottery silk olives lanterns violins salt paper "
    "saffron boats amber knives wine marble roses mustard lace horses tea mirrors oysters apples "
    "copper puppets umbrellas".split()
)
PRODUCTS = tuple(
    "tractors batteries shoes radios paint elevators bicycles pianos toys cameras furniture "
    "engines soap pencils tires cement telescopes ovens buttons helmets pumps candles gloves "
    "turbines bottles lamps ropes scales printers kites".split()
)
GENRES = tuple(
    "comedy tragedy romance mystery satire horror fantasy western thriller ballad fable farce "
    "biography travelogue legend parody".split()
)
_ADJECTIVES = (
    "Silent Golden Broken Hidden Distant Crimson Frozen Patient Burning Hollow Gentle Wandering "
    "Forgotten Painted Restless Secret Northern Velvet Bitter Shining Lonely Ancient Paper Crooked "
    "Sleeping Endless Borrowed Winter Electric Faithful"
).split()
_NOUNS = (
    "Harbor Orchard Letter Bridge Garden Mirror Shadow Captain Lantern Kingdom Journey Window "
    "Island Daughter Summer Castle Whisper Meadow Stranger Voyage Compass Candle Tower Promise "
    "Thunder Feather Mountain Circus Library Clockmaker"
).split()


class Namer:
    """Makes names, never the same twice, and never two that begin with the same five letters."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._stems: set[str] = set()

    def _syllable(self, closed: bool) -> str:
        rng = self._rng
        return rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if closed else "")

    def word(self, kind: str = "") -> str:
        """One new capitalised word; `kind` picks an ending (country, language, currency, given)."""
        while True:
            if kind in _ENDINGS:
                stem = self._syllable(False) + self._rng.choice("bdfgklmnprstvz")
                if kind in ("country", "language"):
                    stem = self._syllable(False) + stem
                name = stem + self._rng.choice(_ENDINGS[kind])
            else:
                name = self._syllable(False) + self._syllable(True)
                if self._rng.random() < 0.35:
                    name = self._syllable(False) + name
            if 4 <= len(name) <= 10 and name[:5] not in self._stems:
                self._stems.add(name[:5])
                return name.capitalize()

    def words(self, count: int, kind: str = "") -> list[str]:
        """`count` new words."""
        return [self.word(kind) for _ in range(count)]

    def people(self, count: int) -> list[str]:
        """`count` full names, each a given name and a family name; no two the same."""
        given, family = self.words(60, "given"), self.words(max(1, count * 2 // 5))
        pairs = [f"{first} {last}" for first in given for last in family]
        return self._rng.sample(pairs, count)

    def titles(self, count: int) -> list[str]:
        """`count` titles of works; no two the same."""
        pairs = [f"The {adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
        return self._rng.sample(pairs, count)
