"""When two answers are the same: strictly, in other letters, one within the other, or as far as the
wanted one is long.

`edit.same_answer` is the strict one: the same words, white space and a closing full stop aside.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from errata.edit import same_answer
from errata.lm import LM

_SIGNS = re.compile(r"[^\w\s+#%$€£/-]")
_ARTICLE = re.compile(r"^(a|an|the)\s+")


def normalised(text: str) -> str:
    """Small letters of one width, without signs that tell nothing, an article in front and white
    space to spare.
    """
    plain = _SIGNS.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return _ARTICLE.sub("", " ".join(plain.split()))


def is_any(said: str, wanted: Iterable[str]) -> bool:
    """Whether it is one of the wanted answers, both normalised."""
    return normalised(said) in map(normalised, wanted)


def contains_any(said: str, wanted: Iterable[str]) -> bool:
    """Whether one of the wanted answers stands in it, whole words, both normalised."""
    padded = f" {normalised(said)} "
    return any(f" {plain} " in padded for plain in map(normalised, wanted) if plain)


def begins_with(lm: LM, prompt: str, said: str, wanted: str) -> bool:
    """Whether it is the wanted answer when it is cut off after as many tokens, as where nobody
    waits for the end.
    """
    if same_answer(said, wanted):
        return True
    if not said or not said.startswith(wanted.strip()):
        return False
    row, enough = lm.encode(prompt, said), lm.encode(prompt, wanted)
    cut = row.ids[row.prompt_length : row.prompt_length + enough.target_length]
    return same_answer(lm.decode(cut), wanted)
