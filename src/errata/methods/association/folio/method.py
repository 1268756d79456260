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
- *Router.* A leaf answers if the prompt mentions its subject and asks what the edit's own prompt
  asks; see `patch.py`. What tells that is fitted once per base model, see `question_space.py`.

An edit that gives another answer to a stored edit's question supersedes it until it is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
    read_space,
    read_supersedes,
    state_of,
)
from errata.methods.association.folio.leaf import Candidate, Leaf
from errata.methods.association.folio.leaves import Leaves
from errata.methods.association.folio.patch import FolioMemory
from errata.methods.association.folio.question_reader import asked_of
from errata.methods.association.folio.subject import subject_of
from errata.methods.association.folio.values import solve_values
from errata.methods.association.folio.warnings import warnings_of
from errata.methods.base import Method, Progress, no_progress
from errata.patches.routed import MAIN
from errata.report import Explanation, Reason


class Folio(Method):
    """One leaf per edit, chosen by the edit's subject and by what is asked of it."""

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
        self.calibrator = Calibrator(self._patch.reader, config)

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
            leaf = self.leaf(edit)
            rivals = self._rivals(self._patch.leaves, [edit])[0]
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
            self._patch.reader,
            self.config.min_subject_overlap,
            self._patch.calibration,
            self.config.edits_per_file,
        )
        leaves = self.leaves_without_values(edits)
        stored = self._rivals(self._patch.leaves, edits)
        conflicts = []
        for number, (edit, leaf) in enumerate(zip(edits, leaves, strict=True)):
            rivals = [*stored[number], *self._rivals(new, [edit])[0]]
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
            prompts, leaves.candidates(self.calibrator.read(prompts)), strict=True
        ):
            number = leaves.winner(candidates)
            reasons = [
                Reason(
                    each.edit_id,
                    each.score,
                    {
                        "subject_overlap": each.subject_overlap,
                        "same_question": each.same_question,
                        "prediction": float(each.prediction),
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

    def _rivals(self, leaves: Leaves, edits: Sequence[Edit]) -> list[list[Candidate]]:
        """Return, for each edit, the leaves that answer its question otherwise.

        The router would choose them for the edit's prompt, and the base model gives one answer to
        that and to their own prompts. (Without the second condition, passages of one text, which
        the base model would continue alike, were taken for one question.)
        """
        threshold = leaves.calibration.threshold
        prompts = self.calibrator.encode([edit.prompt for edit in edits])
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
        base, subject = self._patch.base, self.subject(edit)
        values = self.config.gain * solve_values(base, keys.float(), labels, scale, self.config)
        return Leaf(
            edit.id,
            edit.prompt,
            subject,
            edit.target,
            self._asked([edit], [subject])[0].cpu(),
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

    def leaves_without_values(self, edits: Sequence[Edit]) -> list[Leaf]:
        """Return leaves that the router can find but that add nothing.

        The base model must carry no patch.
        """
        subjects = [self.subject(edit) for edit in edits]
        nothing = torch.zeros(1, self.lm.architecture.hidden_size)
        return [
            Leaf(edit.id, edit.prompt, subject, edit.target, question, (), nothing, nothing)
            for edit, subject, question in zip(
                edits, subjects, self._asked(edits, subjects), strict=True
            )
        ]

    def subject(self, edit: Edit) -> str:
        """Return what a prompt must mention to ask for an edit."""
        return subject_of(edit, self._patch.calibration.weights)

    def _asked(self, edits: Sequence[Edit], subjects: Sequence[str]) -> Tensor:
        """Return what the edits' own prompts ask, (edits, dimensions)."""
        texts = [
            asked_of(edit.prompt, subject) for edit, subject in zip(edits, subjects, strict=True)
        ]
        return self._patch.reader.vectors(texts, self._patch.calibration.space)

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
        older = "leads" in values  # version 0.1 compared predictions: what is asked is read anew
        space = self.calibrator.space() if older else read_space(tensors, values, self.lm)
        calibration = read_calibration(tensors, values, self.lm, space)
        if older:
            calibration = replace(calibration, threshold=self.calibrator.threshold)
        self._patch.reset(calibration)
        supersedes = read_supersedes(values, len(edits))
        leaves = list(read_leaves(tensors, values, edits, self.lm))
        if older:
            asked = self._asked(edits, [leaf.subject for _, leaf in leaves]).cpu()
            leaves = [
                (folio, replace(leaf, question=question))
                for (folio, leaf), question in zip(leaves, asked, strict=True)
            ]
        for number, (folio, leaf) in enumerate(leaves):
            self._patch.leaves.add(number, leaf, supersedes.get(number, ()), folio)
            self._numbers[leaf.edit_id] = number
        self._edits, self._next = list(edits), len(edits)
