"""Inflected forms of names: endings, particles and prefixes, from closed lists and no grammar.

A word may be a form of a shorter one when the rest is in the list of its script. Short endings that
may also make another name (Julia, Julian) count after long names only. With `lenient`, more endings
count, after short names, too; that is for an edit's own prompt, which is known to mention the name.

Names and words are in the spelling of `spelling.fold`. `parts.py` and `names.py` use this to find
names in texts.
"""

from __future__ import annotations

import regex

STEM = "~"
"""Marks a key that is the stem of a word, not a word (Москв~)."""

_LATIN_CLEAR = frozenset(
    end
    for case in "ssa ssä sta stä lla llä lta ltä lle ksi".split()
    for end in (case, f"i{case}")  # Finnish
) | frozenset("s ban ben ból ből ról ről tól től nak nek nál nél hoz hez höz ért ként".split())
_LATIN_SHORT = frozenset(
    "n en on ön in un ün ba be ra re da de ta te tä dan den tan ten nin nun nün at et ot".split()
)
_LATIN_MORE = frozenset(
    "a e i u ü y ä es em om ie hin iin seen tta ttä ya ye yi yu yü val vel ig öt t "
    "ach ami owi ou ovi ų os ai".split()
)
_LATIN_LENIENT = _LATIN_MORE | _LATIN_SHORT | _LATIN_CLEAR
_LATIN_LONGEST = max(map(len, _LATIN_LENIENT))
_LATIN_LAST = frozenset(end[-1] for end in _LATIN_LENIENT)
_LATIN_LEAST, _LATIN_LONG, _LENIENT_LEAST = 4, 6, 3
"""Letters of a name, at least: before a clear ending, before a short one, and if lenient."""

_CYRILLIC = (
    "а я у ю ы и і ї е є о ой ей ою ею єю ом ем ём єм ью ам ям ами ями ах ях ові еві "
    "ого его ому ему ым им ую юю ая яя ое ее ий ый"
).split()
_CYRILLIC_NAMED = "а я ь й о е ий ый ой ая яя ое".split()
_CYRILLIC_LEAST = 3

_PARTICLE = (
    "은 는 이 가 을 를 의 에 에서 에게 에게서 한테 께 께서 로 으로 로서 으로서 로부터 와 과 "
    "이랑 랑 하고 도 만 부터 까지 보다 처럼 마다 조차 이나 나 이란 란 이라는 라는 이라고 라고 "
    "이다 다 이며 며 이고 고 인 입니다 이었다 였다 이지만 지만 야 아 여 이여 님 씨"
).split()
_HANGUL = regex.compile(rf"(?:{'|'.join(sorted(_PARTICLE, key=len, reverse=True))}){{1,3}}$")
_HANGUL_LEAST, _PARTICLES_MOST = 2, 3 * max(map(len, _PARTICLE))

_ARABIC = regex.compile(r"[وف]?(?:[بلكس]|ال|بال|كال|لل)|[وف]")
_HEBREW = regex.compile(r"[והבלכמש]{1,3}")
_SEMITIC_LEAST, _PREFIX_MOST = 3, 4
_OTHER_LEAST, _OTHER_MOST = 4, 3
"""In scripts without a list, if lenient: letters of a name, at least, of its ending, at most."""

_LATIN_WORD, _CYRILLIC_WORD = (
    regex.compile(r"[\p{Latin}\p{M}]+"),
    regex.compile(r"[\p{Cyrillic}\p{M}]+"),
)
_HANGUL_WORD, _ARABIC_WORD = regex.compile(r"\p{Hangul}+"), regex.compile(r"[\p{Arabic}\p{M}]+")
_HEBREW_WORD, _ANY_WORD = regex.compile(r"[\p{Hebrew}\p{M}]+"), regex.compile(r"[\p{L}\p{M}]+")
_MARK = regex.compile(r"\p{M}")


def keys_of(name: str) -> frozenset[str]:
    """Return the keys of a name's word, one of which must be among the `bases` of a form of it.

    These are the word and, in Cyrillic, where its own ending changes, its stems.
    """
    keys = {name}
    if not name.isascii() and _CYRILLIC_WORD.fullmatch(name):
        stems = _without_endings(name, _CYRILLIC_NAMED, _CYRILLIC_LEAST)
        keys |= {f"{stem}{STEM}" for stem in stems}
    return frozenset(keys)


def bases(word: str, lenient: bool = False) -> set[str]:
    """Return the keys of all words that this word may be a form of, itself included."""
    found = {word}
    if (word.isascii() and word.isalpha()) or _LATIN_WORD.fullmatch(word):
        if word[-1] in _LATIN_LAST:
            found |= _latin(word, lenient)
    elif _CYRILLIC_WORD.fullmatch(word):
        stems = _without_endings(word, _CYRILLIC, _CYRILLIC_LEAST)
        found |= stems | {f"{stem}{STEM}" for stem in stems}
    elif _HANGUL_WORD.fullmatch(word):
        least = 1 if lenient else _HANGUL_LEAST
        ends = range(max(least, len(word) - _PARTICLES_MOST), len(word))
        found |= {word[:end] for end in ends if _HANGUL.fullmatch(word, end)}
    elif _ARABIC_WORD.fullmatch(word):
        found |= _without_prefixes(word, _ARABIC, lenient)
        if regex.match("[وف]?لل", word):  # li- swallows the alif of al-
            found.add("ال" + word[word.index("لل") + 2 :])
    elif _HEBREW_WORD.fullmatch(word):
        found |= _without_prefixes(word, _HEBREW, lenient)
    elif lenient and _ANY_WORD.fullmatch(word):
        ends = range(max(_OTHER_LEAST, len(word) - _OTHER_MOST), len(word))
        found |= {word[:end] for end in ends if not _MARK.match(word, end)}
    return found


def _latin(word: str, lenient: bool) -> set[str]:
    found = set()
    for size in range(max(_LENIENT_LEAST, len(word) - _LATIN_LONGEST), len(word)):
        base, end = word[:size], word[size:]
        if _is_latin_form(base, end) or (lenient and _is_lenient_latin_form(base, end)):
            found.add(base)
            if base[-1] in "áé":  # Róma, Rómában
                found.add(base[:-1] + "ae"["áé".index(base[-1])])
    return found


def _is_latin_form(base: str, end: str) -> bool:
    if end in _LATIN_CLEAR and len(base) >= _LATIN_LEAST:
        return True
    if end not in _LATIN_SHORT or len(base) < _LATIN_LONG:
        return False
    # Nokia-n is a form of Nokia, but Peters-on is Peterson
    return base[-1] in "aeiouyäöü" if end == "n" else base[-1] != "s"


def _is_lenient_latin_form(base: str, end: str) -> bool:
    least = _LENIENT_LEAST + (len(end) == 1 and end != "s")
    return end in _LATIN_LENIENT and len(base) >= least


def _without_endings(word: str, endings: list[str], least: int) -> set[str]:
    return {
        word[: -len(end)] for end in endings if word.endswith(end) and len(word) - len(end) >= least
    }


def _without_prefixes(word: str, prefix: regex.Pattern[str], lenient: bool) -> set[str]:
    most = min(_PREFIX_MOST, len(word) - _SEMITIC_LEAST + lenient)
    return {word[start:] for start in range(1, most + 1) if prefix.fullmatch(word, 0, start)}
