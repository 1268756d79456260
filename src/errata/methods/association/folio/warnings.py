"""What to know of edits just written into a Folio: their own prompt does not reach them, or their
subject is common.
"""

from __future__ import annotations

from collections.abc import Iterable

from errata.edit import same_answer
from errata.methods.association.folio.leaves import Candidate, EncodedPrompt, Leaf
from errata.methods.association.folio.patch import FolioMemory
from errata.patches.routed import MAIN
from errata.words.parts import words

COMMON = 0.1
"""A subject all of whose words stand in so many of the background's texts tells little of what a
prompt is about.
"""


def warnings_of(memory: FolioMemory, numbers: Iterable[int]) -> list[tuple[str, str]]:
    """(edit id, what to know) of leaves. The base model must carry no patch."""
    found = []
    for number in numbers:
        leaf = memory.leaves[number]
        found += [
            (leaf.name, said)
            for said in (_unreached(memory, number, leaf), _common(memory, leaf))
            if said
        ]
    return found


def _unreached(memory: FolioMemory, number: int, leaf: Leaf) -> str | None:
    """Why a leaf's own prompt, read as the router will read it, does not lead to its answer."""
    leaves, lm = memory.leaves, memory.base.lm
    ids = lm.encode_prompt(leaf.prompt)
    text, *_ = lm.conversation(ids).questions
    candidates = leaves.candidates([EncodedPrompt(text, ids, leaf.keys[0].to(lm.device))])[0]
    own = next((each for each in candidates if each.number == number), None)
    if own is None:
        if not words(leaf.subject):
            return "nothing in its prompt tells it from others, so it will never answer; reword it, and give its 'subject'."
        return f"it will never answer: the tokenizer makes {text!r} of its prompt, which does not mention {leaf.subject!r}."
    least = leaves.signs.threshold
    if own.score < least:
        return f"it will never answer: its own prompt has the score {own.score:.3f}, below the threshold {least:.3f}."
    return _answered_by_another(memory, number, leaf, candidates)


def _answered_by_another(
    memory: FolioMemory, number: int, leaf: Leaf, candidates: list[Candidate]
) -> str | None:
    leaves = memory.leaves
    speaker = leaves.speaker(candidates)
    if speaker in (MAIN, number, *leaves.later().get(number, ())):
        return None
    other = leaves[speaker]
    if same_answer(other.target, leaf.target):
        return None
    return f"{other.name} ({other.prompt!r}) answers its prompt in its place."


def _common(memory: FolioMemory, leaf: Leaf) -> str | None:
    weights = memory.signs.weights
    least = min((weights.counts.get(word, 0) for word in words(leaf.subject)), default=0)
    if least < COMMON * weights.texts:
        return None
    return (
        f"its subject {leaf.subject!r} stands in {least} of {weights.texts} self-generated texts, so it tells little of "
        "what a prompt is about; give the 'subject' that the fact is about."
    )
