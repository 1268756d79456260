"""Folio: each edit is a leaf at the output head; a router finds the one that a prompt asks for.

This is errata's own method. WISE (arXiv 2405.14768) keeps edits beside the main memory, behind a
router. Its limits: the router tells memories apart by their activation norm, learning one edit
after another forgets, and an edit costs tens of passes. Folio differs in three things:

- *Place.* Values are added to the head's input. Nothing but the head lies above it, so the loss is
  convex in a value: one pass of the model and some steps through the head alone solve for it. Its
  effect on another wording is known: it adds the same amount to each logit.
- *Write.* For each token of the answer, end token included, a value is solved for that gives the
  token the probability `confidence`; then it is multiplied by `gain`, for wordings on which the
  model is surer of its own answer. Each edit is solved for alone and nothing is overwritten, so
  order does not matter, and to undo an edit is to remove its leaf.
- *Router.* A leaf answers if the prompt mentions its subject and the base model would continue the
  prompt as it would the edit's own; see `patch.py`. The threshold is calibrated on self-generated
  text, see `calibrator.py`.

An edit that gives another answer to a stored edit's question supersedes it until it is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from errata.edit import Edit, same_answer
from errata.lm import LM
from errata.methods.association.folio.calibrator import Calibrator
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.files import (
    read_calibration,
    read_leaves,
    read_supersedes,
    state_of,
)
from errata.methods.association.folio.leaf import Candidate, EncodedPrompt, Leaf, Question
from errata.methods.association.folio.leaves import Leaves
from errata.methods.association.folio.patch import FolioMemory
from errata.methods.association.folio.subject import subject_of
from errata.methods.association.folio.values import solve_values
from errata.methods.association.folio.warnings import warnings_of
from errata.methods.base import Method, Progress, no_progress
from errata.patches.routed import MAIN
from errata.report import Explanation, Reason


class Folio(Method):
    """One leaf per edit, chosen by the edit's subject and the base model's own prediction."""

    config_class = FolioConfig
    phase = "association"
    reads_text = True
    undo_is = "exact, by dropping the edit's leaf"
    paper = "errata, docs/folio.md"
    config: FolioConfig

    def __init__(self, config: FolioConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self._patch = FolioMemory(lm, config.min_subject_overlap, config.edits_per_file)
        self._numbers: dict[str, int] = {}
        self._next = 0
        self.calibrator = Calibrator(self._patch.base, config)

    @property
    def patch(self) -> FolioMemory:
        """The leaves, as a patch."""
        return self._patch

    def calibrate(self) -> None:
        """Calibrate the router, unless that has been done. The base model must carry no patch."""
        if not self._patch.calibrated:
            self._patch.reset(self.calibrator.calibrate())

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add a leaf for each edit; it is independent of all but those that it supersedes."""
        self.calibrate()
        for edit in edits:
            question, leaf = self._questions([edit])[0], self.leaf(edit)
            rivals = self._rivals(self._patch.leaves, [edit], [question.encoded])[0]
            self._patch.leaves.add(self._next, leaf, [rival.number for rival in rivals])
            self._numbers[edit.id] = self._next
            self._next += 1
            self._edits.append(edit)
            progress(1)

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Remove the edits' leaves."""
        gone = self.check_ids(edit_ids)
        for edit_id in gone:
            self._patch.leaves.remove(self._numbers.pop(edit_id))
        self._edits = [edit for edit in self._edits if edit.id not in gone]

    def clear(self) -> None:
        """Remove all leaves; the calibration stays."""
        for number in self._numbers.values():
            self._patch.leaves.remove(number)
        self._numbers, self._edits, self._next = {}, [], 0

    def conflicts(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """Return (new id, older id) of edits that give one question different answers.

        Two prompts are one question if the router says so, whatever their words, and the base model
        answers them alike. The base model must carry no patch.
        """
        if not edits:
            return []
        self.calibrate()
        new = Leaves(
            self._patch.base,
            self.config.min_subject_overlap,
            self._patch.calibration,
            self.config.edits_per_file,
        )
        prompts, leaves = self.leaves_without_values(edits)
        stored = self._rivals(self._patch.leaves, edits, prompts)
        conflicts = []
        for number, (edit, prompt, leaf) in enumerate(zip(edits, prompts, leaves, strict=True)):
            rivals = [*stored[number], *self._rivals(new, [edit], [prompt])[0]]
            conflicts += [(edit.id, rival.edit_id) for rival in rivals]
            new.add(number, leaf)
        return conflicts

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Say which leaf answers each prompt, and which others have a subject that it mentions."""
        if not self._edits:
            return [Explanation(prompt, None, 1.0, []) for prompt in prompts]
        leaves = self._patch.leaves
        explanations = []
        for prompt, candidates in zip(
            prompts, leaves.candidates(self.calibrator.encode(prompts)), strict=True
        ):
            number = leaves.winner(candidates)
            reasons = [
                Reason(
                    each.edit_id,
                    each.score,
                    {
                        "subject_overlap": each.subject_overlap,
                        "prediction_overlap": each.prediction_overlap,
                    },
                    f"folio {leaves.folio_of(each.number)}",
                )
                for each in candidates
            ]
            edit_id = None if number == MAIN else leaves[number].edit_id
            threshold = leaves.calibration.threshold
            explanations.append(Explanation(prompt, edit_id, threshold, reasons))
        return explanations

    def warnings(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """Return (edit id, warning) of edits that cannot be reached or have a common subject."""
        return warnings_of(self._patch, [self._numbers[edit.id] for edit in edits])

    def _rivals(
        self, leaves: Leaves, edits: Sequence[Edit], prompts: Sequence[EncodedPrompt]
    ) -> list[list[Candidate]]:
        """Return, for each edit and its prompt, the leaves that answer its question otherwise.

        The router would choose them for the edit's prompt, and the base model gives one answer to
        that and to their own prompts. (Without the second condition, passages of one text, which
        the base model would continue alike, were taken for one question.)
        """
        threshold = leaves.calibration.threshold
        return [
            [
                each
                for each in candidates
                if each.score >= threshold
                and not same_answer(leaves[each.number].target, edit.target)
                and self.calibrator.same_question(edit.prompt, leaves[each.number].prompt)
            ]
            for edit, candidates in zip(edits, leaves.candidates(prompts), strict=True)
        ]

    # writing

    def leaf(self, edit: Edit) -> Leaf:
        """Solve for an edit's leaf. The base model must carry no patch."""
        keys, labels = self._answer_states(edit)
        scale = float(self._patch.calibration.scale.median())
        base, (question,) = self._patch.base, self._questions([edit])
        values = self.config.gain * solve_values(base, keys.float(), labels, scale, self.config)
        return Leaf(
            edit.id,
            edit.prompt,
            self.subject(edit),
            edit.target,
            question.answer_prefix,
            question.query_state.to(keys.dtype).cpu(),
            tuple(labels.tolist()),
            keys.cpu(),
            values.to(keys.dtype).cpu(),
        )

    def _answer_states(self, edit: Edit) -> tuple[Tensor, Tensor]:
        """Return (keys (n, hidden), labels (n,)) of an edit's answer, its ending included.

        The pass that reads the answer with a full stop also tells whether the model puts one there.
        """
        lm, base = self.lm, self._patch.base
        bare, dotted = (lm.encode(edit.prompt, edit.target, end) for end in (None, "."))
        row = dotted
        if not (lm.learns_eos and lm.end_ids) or dotted.ids[:-2] != bare.ids:
            row = lm.encode(edit.prompt, edit.target, lm.ending_of(edit.prompt, edit.target))
        batch = lm.batch([row])
        _, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        keys = base.inputs(batch)[0, columns]
        if row is dotted:
            dot, end = base.logits(keys[-2:]).argmax(-1).tolist()
            if dot != row.ids[-2] or end not in lm.end_ids:
                keys, labels = keys[:-1], torch.cat([labels[:-2], labels[-1:]])
        return keys, labels

    def leaves_without_values(
        self, edits: Sequence[Edit]
    ) -> tuple[list[EncodedPrompt], list[Leaf]]:
        """Return edits' encoded prompts, and leaves that the router can find but that add nothing.

        The base model must carry no patch.
        """
        questions = self._questions(edits)
        return [question.encoded for question in questions], [
            Leaf(
                edit.id,
                edit.prompt,
                self.subject(edit),
                edit.target,
                question.answer_prefix,
                question.query_state,
                (),
                question.key[None],
                question.key[None],
            )
            for edit, question in zip(edits, questions, strict=True)
        ]

    def subject(self, edit: Edit) -> str:
        """Return what a prompt must mention to ask for an edit."""
        return subject_of(edit, self._patch.calibration.weights)

    def _questions(self, edits: Sequence[Edit]) -> list[Question]:
        reference_prompts = self._patch.calibration.reference_prompts
        return self.calibrator.questions([edit.prompt for edit in edits], reference_prompts)

    # state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the calibration and the leaves, see `files.py`; nothing before calibration."""
        if not self._patch.calibrated:
            return {}, {}
        return state_of(self._patch.leaves, self._edits, self._numbers)

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()`. The leaves' tensors are not copied."""
        self.clear()
        if not values and not edits:
            return
        self._patch.reset(read_calibration(tensors, values, self.lm))
        supersedes = read_supersedes(values, len(edits))
        leaves = read_leaves(tensors, values, edits, self.lm)
        for number, (folio, leaf) in enumerate(leaves):
            self._patch.leaves.add(number, leaf, supersedes.get(number, ()), folio)
            self._numbers[leaf.edit_id] = number
        self._edits, self._next = list(edits), len(edits)
