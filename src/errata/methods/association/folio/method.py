"""Folio: an edit is a leaf of its own; the right one is found, and then only that one speaks.
errata's own method.

WISE (arXiv 2405.14768) put edits beside the main memory, behind a router. Its limits are that the
router must tell memories apart by how loud they are, that learning one edit after another forgets,
and that an edit costs tens of passes. Here:

- *Place.* The head's input: nothing above it but the head, so the loss of a value is convex, one
  pass of the model and some steps through the head alone solve it, and what it does on another
  wording is known: it adds so much to each logit.
- *Write.* For each token of the answer, end included, a value is added to the head's input until
  the token has the probability `confidence`; then times `gain`, for wordings on which the model is
  surer of what it said before. Every edit is solved alone. Nothing is written over anything, so
  order does not matter and undo is dropping the leaf.
- *Router.* A leaf speaks when the prompt mentions its subject and the base model would go on from
  the prompt as from the edit's own; see `patches.folio`. What it takes to speak is calibrated on
  text of the model's own making; by the same text it is found where the base model's answers begin
  to tell: behind a *lead* that it would say to any prompt.

An edit that answers a stored one's question otherwise takes its place; undone, the other is back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.edit import Edit, same_answer
from errata.lm import LM
from errata.methods.association.folio import files as folio_files
from errata.methods.association.folio.calibration import FolioBackground
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.leaves import Candidate, EncodedPrompt, Leaf, Leaves
from errata.methods.association.folio.patch import FolioMemory
from errata.methods.association.folio.subject import subject_of
from errata.methods.association.folio.warnings import warnings_of
from errata.methods.base import Method, Progress, no_progress
from errata.patches.routed import MAIN
from errata.report import Explanation, Reason


class Folio(Method):
    """Leaves beside the head, each found by its subject and by what the base model would have said."""

    config_class = FolioConfig
    phase = "association"
    reads_text = True
    undo_is = "exact, by dropping the edit's leaf"
    paper = "errata, docs/folio.md"
    config: FolioConfig

    def __init__(self, config: FolioConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self._patch = FolioMemory(lm, config.mentioned, config.leaves)
        self._numbers: dict[str, int] = {}
        self._next = 0
        self.background = FolioBackground(self._patch.base, config)

    @property
    def patch(self) -> FolioMemory:
        """The leaves."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits; each is a leaf that knows of no other, but for those whose place it takes."""
        self.calibrate()
        endings = self.lm.endings([(edit.prompt, edit.target) for edit in edits])
        for edit, ending in zip(edits, endings, strict=True):
            leaf = self.leaf(edit, ending)
            asked = EncodedPrompt(
                edit.prompt, self.lm.encode_prompt(edit.prompt), leaf.keys[0].to(self.lm.device)
            )
            earlier = [each.number for each in self._rivals(self._patch.leaves, [edit], [asked])[0]]
            self._patch.leaves.add(self._next, leaf, earlier)
            self._numbers[edit.id] = self._next
            self._next += 1
            self._edits.append(edit)
            progress(1)

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Drop leaves."""
        gone = self.check_ids(edit_ids)
        for name in gone:
            self._patch.leaves.drop(self._numbers.pop(name))
        self._edits = [edit for edit in self._edits if edit.id not in gone]

    def clear(self) -> None:
        """Forget all edits; what is known of the background stays."""
        for number in self._numbers.values():
            self._patch.leaves.drop(number)
        self._numbers, self._edits, self._next = {}, [], 0

    def conflicts(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """As every method; and edits ask the same when the router says so, in whatever words."""
        if not edits:
            return []
        self.calibrate()
        new = Leaves(self._patch.base, self.config.mentioned, self._patch.signs, self.config.leaves)
        prompts, leaves = self.leaves_without_values(edits)
        stored = self._rivals(self._patch.leaves, edits, prompts)
        found = []
        for number, (edit, asked, leaf) in enumerate(zip(edits, prompts, leaves, strict=True)):
            both = [*stored[number], *self._rivals(new, [edit], [asked])[0]]
            found += [(edit.id, candidate.name) for candidate in both]
            new.add(number, leaf)
        return found

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Which leaf answers each prompt, and the others whose subject it mentions."""
        if not self._edits:
            return [Explanation(prompt, None, 1.0, []) for prompt in prompts]
        asked, leaves = self.background.asked(prompts), self._patch.leaves
        told = []
        for prompt, found in zip(prompts, leaves.candidates(asked), strict=True):
            number = leaves.speaker(found)
            name = None if number == MAIN else leaves[number].name
            reasons = [
                Reason(
                    c.name,
                    c.score,
                    {"mentioned": c.mentioned, "alike": c.alike},
                    f"folio {leaves.folio_of(c.number)}",
                )
                for c in found
            ]
            told.append(Explanation(prompt, name, leaves.signs.threshold, reasons))
        return told

    def warnings(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """Of edits that their own prompt does not reach, and of subjects that stand in many texts."""
        return warnings_of(self._patch, [self._numbers[edit.id] for edit in edits])

    def _rivals(
        self, leaves: Leaves, edits: Sequence[Edit], prompts: Sequence[EncodedPrompt]
    ) -> list[list[Candidate]]:
        """For each edit, asked so, the leaves that answer its question with another target.

        They would answer its prompt, and the base model has one answer to it and to theirs.
        (Without that, passages of one text, which the base model would go on from alike, were taken
        for one question.)
        """
        rivals = []
        for edit, found in zip(edits, leaves.candidates(prompts), strict=True):
            near = [
                (each, leaves[each.number])
                for each in found
                if each.score >= leaves.signs.threshold
            ]
            other = [
                (each, leaf) for each, leaf in near if not same_answer(leaf.target, edit.target)
            ]
            rivals.append(
                [
                    each
                    for each, leaf in other
                    if self.background.same_question(edit.prompt, leaf.prompt)
                ]
            )
        return rivals

    # writing

    def leaf(self, edit: Edit, ending: str | None) -> Leaf:
        """An edit's subject, keys and values; `ending` as `LM.endings` has it. The base model must
        carry no patch.
        """
        lm, base = self.lm, self._patch.base
        batch = lm.batch([lm.encode(edit.prompt, edit.target, ending)])
        _, columns, labels = batch.label_positions(batch.target_mask | batch.ending_mask)
        keys = base.read(batch)[0][0, columns]
        values = self.config.gain * self.solved(keys.float(), labels)
        ((lead, sign),) = self._leads([lm.encode_prompt(edit.prompt)], keys[:1])
        return Leaf(
            edit.id,
            edit.prompt,
            self.subject(edit),
            edit.target,
            lead,
            sign.to(keys.dtype).cpu(),
            tuple(labels.tolist()),
            keys.cpu(),
            values.to(keys.dtype).cpu(),
        )

    def leaves_without_values(
        self, edits: Sequence[Edit]
    ) -> tuple[list[EncodedPrompt], list[Leaf]]:
        """(what edits ask, their leaves: found as any, with nothing to say). The base model must
        carry no patch.
        """
        prompts = self.background.asked([edit.prompt for edit in edits])
        leads = self._leads(
            [asked.ids for asked in prompts], torch.stack([asked.key for asked in prompts])
        )
        return prompts, [
            Leaf(
                edit.id,
                edit.prompt,
                self.subject(edit),
                edit.target,
                lead,
                sign,
                (),
                asked.key[None],
                asked.key[None],
            )
            for edit, asked, (lead, sign) in zip(edits, prompts, leads, strict=True)
        ]

    def subject(self, edit: Edit) -> str:
        """What a prompt must mention to be asking for an edit."""
        return subject_of(edit, self._patch.signs.weights)

    def solved(self, keys: Tensor, labels: Tensor) -> Tensor:
        """What to add to the head's inputs (n, hidden) so that it says labels (n,).

        Each token's loss counts down to that of `confidence`, with what is found and with `gain`
        times that: a token from far behind may overtake it between the two. Both are convex, and
        some tokens lie far away, so: L-BFGS. The best that was seen is kept, as the line search may
        lose itself where nothing slopes any more.
        """
        scale = float(self._patch.signs.scale.median())
        values = torch.zeros_like(keys, requires_grad=True)
        enough = -math.log(self.config.confidence)
        labels = labels.to(keys.device).repeat(2)
        least, best = math.inf, values.detach().clone()

        def loss() -> Tensor:
            nonlocal least, best
            solver.zero_grad()
            both = torch.cat([keys + scale * values, keys + self.config.gain * scale * values])
            losses = F.cross_entropy(self._patch.base.logits(both), labels, reduction="none")
            missing = F.relu(losses - enough).sum()
            if missing.item() < least:
                least, best = missing.item(), values.detach().clone()
            missing.backward()  # type: ignore[no-untyped-call]
            return missing

        solver = torch.optim.LBFGS(
            [values],
            max_iter=self.config.steps,
            history_size=20,
            tolerance_change=1e-7,
            line_search_fn="strong_wolfe",
        )
        with torch.enable_grad():
            solver.step(loss)  # type: ignore[no-untyped-call]
        return scale * best

    def calibrate(self) -> None:
        """Look at text of the model's own making, unless that has been done. The base model must
        carry no patch.
        """
        if not self._patch.calibrated:
            self._patch.begin(self.background.signs())

    def _leads(
        self, prompts: Sequence[Sequence[int]], keys: Tensor
    ) -> list[tuple[tuple[int, ...], Tensor]]:
        return self.background.leads(prompts, keys, self._patch.signs.reference_prompts)

    # state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Of each folio its leaves, see `folio_files`; what is known of the background."""
        patch = self._patch
        if not patch.calibrated:
            return {}, {}
        signs = patch.signs
        tensors = {
            "center": signs.center.cpu(),
            "scale": signs.scale.cpu(),
            **folio_files.tensors_of(patch.leaves, self._edits),
        }
        places = {self._numbers[edit.id]: place for place, edit in enumerate(self._edits)}
        return tensors, {
            "counts": signs.weights.counts,
            "texts": signs.weights.texts,
            "sharpness": signs.logit_scale,
            "threshold": signs.threshold,
            "judges": signs.reference_prompts,
            "leads": [list(patch.leaves[number].lead) for number in places],
            "subjects": [patch.leaves[number].subject for number in places],
            "later": [
                [places[number], [places[n] for n in later]]
                for number, later in patch.leaves.later().items()
            ],
        }

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described. Leaves stay where the tensors are."""
        self.clear()
        if not values and not edits:
            return
        self._patch.begin(folio_files.signs_in(tensors, values, self.lm))
        earlier = folio_files.superseded(values, len(edits))
        for number, (folio, leaf) in enumerate(
            folio_files.leaves_in(tensors, values, edits, self.lm)
        ):
            self._patch.leaves.add(number, leaf, earlier.get(number, ()), folio)
            self._numbers[leaf.name] = number
        self._edits, self._next = list(edits), len(edits)
