"""When an answer counts as a wanted one: normalised, contained, or as its beginning.

`edit.same_answer` is the strict comparison: the same words, up to white space and a final full
stop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from errata.edit import same_answer
from errata.lm import LM

_PUNCTUATION = re.compile(r"[^\w\s+#%$€£/-]")
_ARTICLE = re.compile(r"^(a|an|the)\s+")


def normalize(text: str) -> str:
    """Return a text casefolded, in NFKC, without punctuation, leading article and extra space."""
    plain = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return _ARTICLE.sub("", " ".join(plain.split()))


def is_any(answer: str, wanted: Iterable[str]) -> bool:
    """Return whether an answer is one of those wanted, all normalised."""
    return normalize(answer) in map(normalize, wanted)


def contains_any(answer: str, wanted: Iterable[str]) -> bool:
    """Return whether an answer contains one of those wanted as whole words, all normalised."""
    padded = f" {normalize(answer)} "
    return any(f" {plain} " in padded for plain in map(normalize, wanted) if plain)


def begins_with(lm: LM, prompt: str, answer: str, wanted: str) -> bool:
    """Return whether an answer, cut to the number of tokens of the wanted one, is the wanted one.

    That is how evaluations count which do not wait for the end token.
    """
    if same_answer(answer, wanted):
        return True
    if not answer or not answer.startswith(wanted.strip()):
        return False
    row, length = lm.encode(prompt, answer), lm.encode(prompt, wanted).target_length
    cut = row.ids[row.prompt_length : row.prompt_length + length]
    return same_answer(lm.decode(cut), wanted)
