"""What a prompt must mention to be asking for an edit of a Folio, where the edit does not say."""

from __future__ import annotations

import regex

from errata.edit import Edit
from errata.lm.background import names_in
from errata.words.names import WordWeights
from errata.words.parts import words

RARE = 0.6
"""The weight from which a word that opens a prompt with a capital letter is taken for a name."""
FEW = 3
"""An edit that names neither subject nor any name is known by so many of its rarest words."""
_OPENER = regex.compile(r"\p{Lu}[\p{L}\p{M}\p{N}]+")
_NUMBERS = r"(?:[ -]\w*\d\w*)*"


def subject_of(edit: Edit, weights: WordWeights) -> str:
    """An edit's subject, else the names in its prompt, else its rarest words.

    A capital letter at the prompt's beginning makes a name of a rare word only. Numbers behind a
    name belong to it.
    """
    if edit.subject is not None:
        return edit.subject
    names, opener = names_in(edit.prompt), _OPENER.match(edit.prompt)
    if not names and opener and all(weights[word] >= RARE for word in words(opener[0])):
        names = [opener[0]]
    if not names:
        return " ".join(
            sorted(set(words(edit.prompt)), key=lambda word: (-weights[word], word))[:FEW]
        )
    return " ".join(
        regex.findall("|".join(regex.escape(name) + _NUMBERS for name in names), edit.prompt)
    )
