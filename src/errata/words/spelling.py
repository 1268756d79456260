"""`fold`: one spelling for texts that read the same, by the rules of Unicode.

This knows no words and no language; `parts.py` splits a folded text into words.
"""

from __future__ import annotations

import unicodedata

import regex

_PIECE = regex.compile(r"[\x00-\x7f]+(?![^\x00-\x7f])|\X")
_INVISIBLE = regex.compile(
    r"(?V1)\u200d(?!\p{Extended_Pictographic})"
    r"|[\p{Default_Ignorable_Code_Point}--[\u200d\U000e0020-\U000e007f]]"
)
"""Invisible characters: soft hyphens, joiners (except between emoji), marks of direction,
variation selectors.
"""
_POINTS = regex.compile(
    r"[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652\u0670\u0640]"
)
"""Optional marks: vowel points of Hebrew and Arabic, and the stroke that stretches a word."""
_APOSTROPHE = regex.compile(r"[\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02c8\u2032`\u00b4\uff07]")
_LONGEST = 30
"""Characters of a letter with its marks that are normalised together, at most."""
_TRADE_MARK = regex.compile(r"[\u2122\u2120\u00ae\u00a9]")


def fold(text: str) -> str:
    """Fold case, width, invisible characters, apostrophes, digits and composition of a text."""
    return text.lower() if text.isascii() else "".join(map(_folded, _PIECE.findall(text)))


def fold_with_places(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return (`fold(text)`, the (start, end) in the text that each of its characters is from)."""
    pieces: list[str] = []
    places: list[tuple[int, int]] = []
    for piece in _PIECE.finditer(text):
        folded = _folded(piece[0])
        start, end = piece.span()
        if len(folded) == end - start:
            places += [(i, i + 1) for i in range(start, end)]
        else:
            places += [(start, end)] * len(folded)
        pieces.append(folded)
    return "".join(pieces), places


def _folded(piece: str) -> str:
    if piece.isascii():
        return piece.lower()
    if len(piece) > _LONGEST:
        return "".join(
            _folded(piece[start : start + _LONGEST]) for start in range(0, len(piece), _LONGEST)
        )
    piece = _APOSTROPHE.sub("'", _TRADE_MARK.sub(" ", _INVISIBLE.sub("", piece)))
    piece = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", piece).casefold())
    piece = _POINTS.sub("", piece).replace("i\u0307", "i").replace("ı", "i")
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in piece)
