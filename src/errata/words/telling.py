"""What an answer tells: its names and numbers, else its rare words; and whether another does."""

from __future__ import annotations

import regex

from errata.words.names import WordWeights
from errata.words.parts import mentions, words

_WORD = regex.compile(r"[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}]|[-'’.](?=[\p{L}\p{N}]))*")
_END = regex.compile(r"(?<=[\p{L}\p{N}]{4}|\p{N}|[\"”’»)\]])[.!?…](?=\s+\p{Lu}|\s*$)|\n|[。！？]")
"""The end of a sentence; not a full stop behind a short word ("St.")."""
_RARE = 0.7
"""The weight of a word from which it tells something where there are no names."""
_FEW = 3
_COMMON = frozenset(
    "a an the this that these those it its he his him she her hers they their them we our i my you "
    "your is was were are be been being has have had do does did will would can could may might of "
    "in on at by for from with to as and or but not no yes so if when who what which where how one "
    "there here also known called named answer born based located according".split()
)


def telling_parts(answer: str, known: str, weights: WordWeights) -> list[str]:
    """Return the parts of an answer that tell something that is not known.

    Args:
        answer: its first sentence that tells something counts.
        known: text whose words tell nothing, like the question.
        weights: how rare words are.

    Returns:
        Runs of neighbouring words: those with a capital letter or a number in them, and all in
        scripts without capitals; where there are none, the rare ones, if they are few. (Many rare
        words describe; to withhold them would hurt other answers, and hide nothing.)
    """
    there = set(words(known)) | _COMMON
    told = (_parts(sentence, there, weights) for sentence in _END.split(answer))
    return next((parts for parts in told if parts), [])


def _parts(line: str, there: set[str], weights: WordWeights) -> list[str]:
    found = [word for word in _WORD.finditer(line) if not set(words(word[0])) <= there]
    named = [word for word in found if not word[0].islower()]
    rare = [w for w in found if any(weights[each] >= _RARE for each in words(w[0]))]
    kept = named or (rare if len(rare) <= _FEW else [])
    parts: list[str] = []
    end = -1
    for word in kept:
        if word.start() == end + 1 and line[end] in " -":
            parts[-1] += line[end] + word[0]
        else:
            parts.append(word[0])
        end = word.end()
    return list(dict.fromkeys(parts))


def still_told(answer: str, before: str, prompt: str) -> bool:
    """Return whether an answer to a prompt tells a part of what an earlier answer told.

    Where that told nothing, whether it is the same.
    """
    parts = telling_parts(before, prompt, WordWeights.from_texts([prompt]))
    if not parts:
        return answer.strip() == before.strip()
    return any(mentions(answer, part) for part in parts)
