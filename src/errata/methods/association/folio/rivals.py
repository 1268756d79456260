"""`rivals_of`: the leaves that give an edit's question another answer; `conflicts_of` edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from errata.edit import Edit, same_answer
from errata.methods.association.folio.calibrator import Calibrator
from errata.methods.association.folio.leaf import Candidate
from errata.methods.association.folio.leaves import Leaves

CHUNK = 32
"""Edits whose questions are read together, at most."""


def rivals_of(
    leaves: Leaves, calibrator: Calibrator, edits: Sequence[Edit]
) -> list[list[Candidate]]:
    """Return, for each edit, the leaves that answer its question otherwise.

    The base model gives one answer to their own prompts and to the edit's, and the router, that
    being so, would choose them for it. (By the answers alone, passages of one text, which the base
    model would continue alike, were taken for one question.) The base model must carry no patch.
    """
    threshold = leaves.calibration.threshold
    prompts = calibrator.encode([edit.prompt for edit in edits])
    possible = [
        [
            each
            for each in candidates
            if replace(each, prediction=1).score >= threshold
            and not same_answer(leaves[each.number].edit.target, edit.target)
        ]
        for edit, candidates in zip(edits, leaves.candidates(prompts), strict=True)
    ]
    pairs = [
        (edit.prompt, leaves[each.number].edit.prompt)
        for edit, candidates in zip(edits, possible, strict=True)
        for each in candidates
    ]
    same = iter(calibrator.same_questions(pairs))
    return [[each for each in candidates if next(same)] for candidates in possible]


def conflicts_of(
    edits: Sequence[Edit], stored: Leaves, new: Leaves, calibrator: Calibrator
) -> list[tuple[str, str]]:
    """Return (new id, older id) of edits that give one question different answers.

    Args:
        edits: the new ones.
        stored: the leaves of the older ones.
        new: the leaves of the new ones, by their places among `edits`.
        calibrator: tells whether two prompts are one question.
    """
    found: list[tuple[str, str]] = []
    for first in range(0, len(edits), CHUNK):
        part = edits[first : first + CHUNK]
        older, others = (rivals_of(leaves, calibrator, part) for leaves in (stored, new))
        for number, edit in enumerate(part, first):
            earlier = [each for each in others[number - first] if each.number < number]
            found += [(edit.id, rival.edit_id) for rival in (*older[number - first], *earlier)]
    return found
