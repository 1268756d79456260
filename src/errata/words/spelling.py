"""One spelling for what is read as the same text, by the rules of Unicode. It knows no words and no
language.
"""

from __future__ import annotations

import unicodedata

import regex

_PIECE = regex.compile(r"[\x00-\x7f]+(?![^\x00-\x7f])|\X")
_INVISIBLE = regex.compile(
    r"(?V1)\u200d(?!\p{Extended_Pictographic})|[\p{Default_Ignorable_Code_Point}--[\u200d\U000e0020-\U000e007f]]"
)
"""What is not seen: soft hyphens, joiners (but between emoji), marks of direction and order,
variation selectors.
"""
_POINTS = regex.compile(
    r"[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652\u0670\u0640]"
)
"""Vowel points of Hebrew and Arabic, and the stroke that only stretches a word: a writer may leave
them out.
"""
_APOSTROPHE = regex.compile(r"[\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02c8\u2032`\u00b4\uff07]")
_LONGEST = 30
"""Signs of a letter and its marks that are put in order together; of a heap of them, so many at a
time.
"""
_TRADE_MARK = regex.compile(r"[\u2122\u2120\u00ae\u00a9]")


def fold(text: str) -> str:
    """A text in the one spelling: without case, width, invisible marks, and ways to write one
    letter with its marks.
    """
    return text.lower() if text.isascii() else "".join(map(_folded, _PIECE.findall(text)))


def fold_with_places(text: str) -> tuple[str, list[tuple[int, int]]]:
    """(`fold(text)`, for each of its characters the (start, end) in the text of what it was made
    of).
    """
    said: list[str] = []
    places: list[tuple[int, int]] = []
    for piece in _PIECE.finditer(text):
        one = _folded(piece[0])
        start, end = piece.span()
        simple = len(one) == end - start
        places += (
            [(start + i, start + i + 1) for i in range(len(one))]
            if simple
            else [(start, end)] * len(one)
        )
        said.append(one)
    return "".join(said), places


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
    return "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in piece)
