"""`warnings_of`: what may be wrong with edits just written into a Folio.

An edit's own prompt may not reach it, or its subject may be too common to tell prompts apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from errata.edit import same_answer
from errata.lm.encoding import in_batches
from errata.methods.association.folio.leaf import Candidate, EncodedPrompt, Leaf
from errata.methods.association.folio.patch import FolioMemory
from errata.methods.association.folio.question_reader import BATCH
from errata.patches.routed import MAIN
from errata.words.parts import words

COMMON = 0.1
"""A subject is too common if each of its words is in this share of the background texts."""


def warnings_of(memory: FolioMemory, numbers: Iterable[int]) -> list[tuple[str, str]]:
    """Return (edit id, warning) of the leaves of these numbers.

    The base model must carry no patch.
    """
    prompts = {number: _own_prompt(memory, number) for number in numbers}
    candidates = in_batches(
        list(prompts), lambda part: memory.leaves.candidates([prompts[n] for n in part]), BATCH, int
    )
    return [
        (memory.leaves[number].edit.id, warning)
        for number, found in zip(prompts, candidates, strict=True)
        for warning in (
            _unreached(memory, number, prompts[number].text, found),
            _common(memory, memory.leaves[number]),
        )
        if warning
    ]


def _own_prompt(memory: FolioMemory, number: int) -> EncodedPrompt:
    """Return a leaf's own prompt, encoded as for the router."""
    leaf, lm = memory.leaves[number], memory.base.lm
    ids = lm.encode_prompt(leaf.edit.prompt)
    text, *_ = lm.questions(ids)
    return EncodedPrompt(text, ids=tuple(ids), key=leaf.key.to(lm.device))


def _unreached(
    memory: FolioMemory, number: int, text: str, candidates: list[Candidate]
) -> str | None:
    """Say why a leaf's own prompt, which reads `text`, does not lead to its answer."""
    leaves = memory.leaves
    leaf = leaves[number]
    own = next((each for each in candidates if each.number == number), None)
    if own is None:
        if not words(leaf.subject):
            return (
                "nothing in its prompt tells it from others, so it will never answer; "
                "reword it, and give its 'subject'."
            )
        return (
            f"it will never answer: the tokenizer makes {text!r} of its prompt, "
            f"which does not mention {leaf.subject!r}."
        )
    threshold = leaves.calibration.threshold
    if own.score < threshold:
        return (
            f"it will never answer: its own prompt has the score {own.score:.3f}, "
            f"below the threshold {threshold:.3f}."
        )
    return _answered_by_another(memory, number, candidates)


def _answered_by_another(
    memory: FolioMemory, number: int, candidates: list[Candidate]
) -> str | None:
    leaves = memory.leaves
    winner = leaves.winner(candidates)
    if winner in (MAIN, number, *leaves.superseded_by().get(number, ())):
        return None
    other = leaves[winner].edit
    if same_answer(other.target, leaves[number].edit.target):
        return None
    return f"{other.id} ({other.prompt!r}) answers its prompt in its place."


def _common(memory: FolioMemory, leaf: Leaf) -> str | None:
    weights = memory.calibration.weights
    texts = min((weights.counts.get(word, 0) for word in words(leaf.subject)), default=0)
    if texts < COMMON * weights.texts:
        return None
    return (
        f"its subject {leaf.subject!r} stands in {texts} of {weights.texts} self-generated texts, "
        "so it tells little of what a prompt is about; give the 'subject' that the fact is about."
    )
