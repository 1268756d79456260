"""`subject_of`: the words that a prompt must mention to ask for an edit."""

from __future__ import annotations

import regex

from errata.edit import Edit
from errata.words.names import WordWeights, names_in
from errata.words.parts import words

MIN_NAME_WEIGHT = 0.6
"""Weight from which a capitalised word at the beginning of a prompt counts as a name."""
RAREST_WORDS = 3
"""Words that identify an edit without subject and names."""
_OPENER = regex.compile(r"\p{Lu}[\p{L}\p{M}\p{N}]+")
_NUMBERS = r"(?:[ -]\w*\d\w*)*"


def subject_of(edit: Edit, weights: WordWeights) -> str:
    """Return an edit's subject, else the names in its prompt, else its rarest words.

    A capitalised word at the beginning of the prompt is a name only if it is rare. Numbers that
    follow a name belong to it.
    """
    if edit.subject is not None:
        return edit.subject
    names, opener = names_in(edit.prompt), _OPENER.match(edit.prompt)
    if not names and opener and all(weights[word] >= MIN_NAME_WEIGHT for word in words(opener[0])):
        names = [opener[0]]
    if not names:
        rarest = sorted(set(words(edit.prompt)), key=lambda word: (-weights[word], word))
        return " ".join(rarest[:RAREST_WORDS])
    return " ".join(
        regex.findall("|".join(regex.escape(name) + _NUMBERS for name in names), edit.prompt)
    )
