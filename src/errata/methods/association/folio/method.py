"""Folio: edits beside the model, found by a router, and said or read.

This is errata's own method. WISE (arXiv 2405.14768) keeps edits beside the main memory, behind a
router. Its limits: the router tells memories apart by their activation norm, learning one edit
after another forgets, and an edit costs tens of passes. Folio differs in three things:

- *Router.* What a prompt gets is decided on its words and on what the base model makes of them in
  the middle of its blocks; see `patch.py`. What tells that is fitted once per base model.
- *Say.* Where a prompt asks what an edit answers, the tokens of its answer, end token included, are
  made as likely as wanted. Nothing is learned, and nothing is overwritten: order does not matter,
  and to undo an edit is to remove its leaf.
  One that erases says a refusal; and what the base model told is withheld wherever the subject is
  mentioned.
- *Read.* Where it wants a yes or no, a choice or a text about the same, the fact is put in front of
  it, and the base model draws the conclusion.

An edit that gives another answer to a stored edit's question supersedes it until it is undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from errata.edit import Edit
from errata.lm import LM
from errata.methods.association.folio.calibrator import Calibrator
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.files import (
    is_older,
    read_calibration,
    read_fitted,
    read_leaves,
    read_supersedes,
    state_of,
)
from errata.methods.association.folio.intents import EDIT_MARGIN, INTENTS
from errata.methods.association.folio.leaf import Leaf
from errata.methods.association.folio.leaves import Leaves
from errata.methods.association.folio.patch import FolioMemory
from errata.methods.association.folio.question_reader import LAST, Question
from errata.methods.association.folio.rivals import CHUNK, conflicts_of, rivals_of
from errata.methods.association.folio.subject import subject_of
from errata.methods.association.folio.warnings import warnings_of
from errata.methods.base import Carry, Method, Progress, no_progress
from errata.patches.routed import MAIN
from errata.report import Explanation, Reason
from errata.words.questions import asked_of
from errata.words.telling import telling_parts

TOLD = 32
"""Tokens of the base model's answer, at most, in which the fact that is erased is looked for."""


class Folio(Method):
    """Edits found by their subject and what is asked of it; said, or read by the base model."""

    config_class = FolioConfig
    phase = "association"
    reads_text = True
    undo_is = "exact, by dropping the edit's leaf"
    paper = "errata, docs/folio.md"
    config: FolioConfig

    def __init__(self, config: FolioConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self._patch = FolioMemory(
            lm, config.min_subject_overlap, config.edits_per_file, config.confidence
        )
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
        withheld = self._told([edit for edit in edits if edit.operation == "erase"])
        for first in range(0, len(edits), CHUNK):
            part = edits[first : first + CHUNK]
            # what they ask is read together, and kept by the reader for what follows
            self._patch.leaves.candidates(self.calibrator.encode([edit.prompt for edit in part]))
            for edit in part:
                leaf = replace(self.leaf(edit), withheld=withheld.get(edit.id, ()))
                rivals = rivals_of(self._patch.leaves, self.calibrator, [edit])[0]
                self._patch.leaves.add(self._next, leaf, [rival.number for rival in rivals])
                self._numbers[edit.id] = self._next
                self._next += 1
                self._edits.append(edit)
                progress(1)

    def take(self, source: Method, carry: Carry) -> None:
        """Write the edits: nothing of a leaf was learned; it is text, and how this model reads it.

        What an edit that erases withholds is what this model tells, not what the other did.
        """
        self.write(source.edits)

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
        for number, leaf in enumerate(self.leaves_without_answers(edits)):
            new.add(number, leaf)
        return conflicts_of(edits, self._patch.leaves, new, self.calibrator)

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Say what each prompt is answered with, and which edits' subjects it mentions."""
        if not self._edits:
            return [Explanation(prompt, None, 1.0, []) for prompt in prompts]
        leaves, explanations = self._patch.leaves, []
        found = leaves.candidates(self.calibrator.read(prompts))
        encoded = self.calibrator.encode(prompts)
        rows = zip(prompts, found, leaves.to_read(encoded), leaves.withheld(encoded), strict=True)
        for prompt, candidates, read, withheld in rows:
            reasons = [
                Reason(
                    each.edit_id,
                    each.score,
                    {
                        "subject_overlap": each.subject_overlap,
                        "same_question": each.same_question,
                        "intent_odds": each.intent_odds,
                        "prediction": float(each.prediction),
                    },
                    f"folio {leaves.folio_of(each.number)}",
                )
                for each in candidates
            ]
            number = MAIN if read else leaves.winner(candidates)
            explanations.append(
                Explanation(
                    prompt,
                    None if number == MAIN else leaves[number].edit.id,
                    leaves.calibration.threshold,
                    reasons,
                    tuple(leaves[each].edit.id for each in read),
                    INTENTS[candidates[0].intent] if candidates else "",
                    tuple(leaves[each].edit.id for each in withheld),
                )
            )
        return explanations

    def warnings(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """Return (edit id, warning) of edits that cannot be reached or have a common subject."""
        return warnings_of(self._patch, [self._numbers[edit.id] for edit in edits])

    # writing

    def leaf(self, edit: Edit) -> Leaf:
        """Return an edit's leaf, which withholds nothing. The base model must carry no patch."""
        key, tokens = self._answer(edit)
        return replace(self.leaves_without_answers([edit])[0], tokens=tokens, key=key.cpu())

    def _told(self, edits: Sequence[Edit]) -> dict[str, tuple[str, ...]]:
        """Return, by edit id, what the base model tells in answer to the edit's prompt."""
        weights = self._patch.calibration.weights
        answers = self.lm.generate([edit.prompt for edit in edits], max_new_tokens=TOLD)
        return {
            edit.id: tuple(telling_parts(answer, f"{edit.prompt} {edit.target}", weights))
            for edit, answer in zip(edits, answers, strict=True)
        }

    def _answer(self, edit: Edit) -> tuple[Tensor, tuple[int, ...]]:
        """Return the head's input at the prompt's end (hidden,), and the answer with its ending.

        The pass that reads the answer with a full stop also tells whether the model puts one there.
        """
        lm, base = self.lm, self._patch.base
        bare, dotted = (lm.encode(edit.prompt, edit.target, end) for end in (None, "."))
        row = dotted
        if not (lm.learns_eos and lm.end_ids) or dotted.ids[:-2] != bare.ids:
            row = lm.encode(edit.prompt, edit.target, lm.ending_of(edit.prompt, edit.target))
        batch = lm.batch([row])
        _, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        keys, tokens = base.inputs(batch)[0, columns], labels.tolist()
        if row is dotted:
            dot, end = base.logits(keys[-2:]).argmax(-1).tolist()
            if dot != row.ids[-2] or end not in lm.end_ids:
                del tokens[-2]
        return keys[0], tuple(tokens)

    @torch.no_grad()
    def leaves_without_answers(self, edits: Sequence[Edit]) -> list[Leaf]:
        """Return leaves that the router can find but that have nothing to say.

        The base model must carry no patch.
        """
        calibration, reader = self._patch.calibration, self._patch.reader
        subjects = [self.subject(edit) for edit in edits]
        asked = [
            Question(asked_of(edit.prompt, subject), subject)
            for edit, subject in zip(edits, subjects, strict=True)
        ]
        whole = [Question(edit.prompt.strip()) for edit in edits]
        views = reader.read([*asked, *whole])
        nothing = torch.zeros(self.lm.architecture.hidden_size)
        return [
            Leaf(
                edit,
                subject,
                calibration.space.vectors(views[question]).cpu(),
                calibration.intents.of(views[prompt][LAST][None], EDIT_MARGIN)[0],
                (),
                nothing,
            )
            for edit, subject, question, prompt in zip(edits, subjects, asked, whole, strict=True)
        ]

    def subject(self, edit: Edit) -> str:
        """Return what a prompt must mention to ask for an edit."""
        return subject_of(edit, self._patch.calibration.weights)

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
        older = is_older(values)
        fitted = self.calibrator.fitted() if older else read_fitted(tensors, values, self.lm)
        calibration = read_calibration(values, self.lm, *fitted)
        if older:
            calibration = replace(calibration, threshold=self.calibrator.threshold)
        self._patch.reset(calibration)
        supersedes = read_supersedes(values, len(edits))
        leaves = list(read_leaves(tensors, values, edits, self.lm))
        if older:
            asked = self.leaves_without_answers(edits)
            leaves = [
                (folio, replace(now, subject=leaf.subject, tokens=leaf.tokens, key=leaf.key))
                for (folio, leaf), now in zip(leaves, asked, strict=True)
            ]
        for number, (folio, leaf) in enumerate(leaves):
            self._patch.leaves.add(number, leaf, supersedes.get(number, ()), folio)
            self._numbers[leaf.edit.id] = number
        self._edits, self._next = list(edits), len(edits)
