"""Folio: an edit is a leaf of its own; the right one is found, and then only that one speaks. errata's own method.

WISE (arXiv 2405.14768) put edits beside the main memory, behind a router. Its limits are that the router must tell memories
apart by how loud they are, that learning one edit after another forgets, and that an edit costs tens of passes. Here:

- *Place.* The head's input: nothing above it but the head, so the loss of a value is convex, one pass of the model and a
  few steps through the head alone solve it, and what it does on another wording is known: it adds so much to each logit.
- *Write.* For each token of the answer, end included, a value is added to the head's input until the token has the
  probability `confidence`; then times `gain`, for wordings on which the model is surer of what it said before. Every edit is
  solved alone. Nothing is written over anything, so order does not matter and undo is dropping the leaf.
- *Router.* A leaf speaks when the prompt mentions its subject and the base model would go on from the prompt as from the
  edit's own; see `patches.folio`. What it takes to speak is calibrated on text of the model's own making.

An edit that answers a stored one's question otherwise takes its place; undone, the other is back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.config import MethodConfig, check_range
from errata.edit import Edit, same_answer
from errata.lm import LM, in_batches
from errata.methods.base import Method, Progress, no_progress
from errata.patches.folio import Candidate, FolioMemory, Leaf, Signs
from errata.patches.routed import MAIN
from errata.report import Explanation, Reason
from errata.statistics import background_texts, names_in, open_prompt
from errata.words import WordWeights, words

TEXT_LENGTH = 24
"""Tokens of a background text, at most."""
BATCH = 64
HIGHEST = 0.98
"""The threshold is never above: an edit's own prompt, read in another batch or precision, must reach it."""
FEW = 3
"""An edit that names neither subject nor any name is known by so many of its rarest words."""


@dataclass(frozen=True)
class FolioConfig(MethodConfig):
    """Settings of Folio.

    Attributes:
        gain: factor on the values that are solved.
        confidence: a value is solved when its token has this probability.
        steps: Adam steps per edit, at most.
        mentioned: the share of the subject that a prompt must mention, its rare words counting most.
        threshold: a leaf speaks when its score is not below; None: `least`, or more where `false_route` asks for it.
        least: the lowest threshold.
        false_route: of pairs of prompts of the model's own making that it answers differently, the share that may reach the
            threshold.
        match: behind the prompt, a value is added where its key is so near (cosine).
        background: texts of the model's own making.
    """

    method: ClassVar[str] = "folio"

    gain: float = 2.0
    confidence: float = 0.99
    steps: int = 60
    mentioned: float = 0.7
    threshold: float | None = None
    least: float = 0.3
    false_route: float = 0.05
    match: float = 0.25
    background: int = 512

    def __post_init__(self) -> None:
        for name in ("steps", "background"):
            check_range(name, getattr(self, name), 1, math.inf)
        check_range("gain", self.gain, 0, math.inf)
        check_range("match", self.match, -1, 1)
        for name in ("confidence", "mentioned", "threshold", "least", "false_route"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 0, 1)


class Folio(Method):
    """Leaves beside the head, each found by its subject and by what the base model would have said."""

    config_class = FolioConfig
    phase = "association"
    undo_is = "exact, by dropping the edit's leaf"
    paper = "errata, docs/folio.md"
    config: FolioConfig

    def __init__(self, config: FolioConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self._patch = FolioMemory(lm, config.mentioned, config.match)
        self._numbers: dict[str, int] = {}
        self._next = 0

    @property
    def patch(self) -> FolioMemory:
        """The leaves."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits; each is a leaf that knows of no other, but for those whose place it takes."""
        self.calibrate()
        known = {edit.id: edit for edit in [*self._edits, *edits]}
        for edit in edits:
            leaf = self.leaf(edit)
            earlier = [each.number for each in self._rivals(self._patch, edit, leaf.keys[0], known)]
            self._patch.add(self._next, leaf, earlier)
            self._numbers[edit.id] = self._next
            self._next += 1
            self._edits.append(edit)
            progress(1)

    def undo(self, edit_ids: Iterable[str]) -> None:
        """Drop leaves."""
        gone = self.check_ids(edit_ids)
        for name in gone:
            self._patch.drop(self._numbers.pop(name))
        self._edits = [edit for edit in self._edits if edit.id not in gone]

    def clear(self) -> None:
        """Forget all edits; what is known of the background stays."""
        for number in self._numbers.values():
            self._patch.drop(number)
        self._numbers, self._edits, self._next = {}, [], 0

    def conflicts(self, edits: Sequence[Edit]) -> list[tuple[str, str]]:
        """As every method; and edits ask the same when the router says so, in whatever words."""
        if not edits:
            return []
        self.calibrate()
        new = FolioMemory(self.lm, self.config.mentioned, self.config.match)
        new.signs = self._patch.signs
        known = {edit.id: edit for edit in [*self._edits, *edits]}
        found = []
        for number, (edit, key) in enumerate(
            zip(edits, self._read([e.prompt for e in edits], all_tokens=False), strict=True)
        ):
            for memory in (self._patch, new):
                found += [(edit.id, c.name) for c in self._rivals(memory, edit, key, known)]
            new.add(number, Leaf(edit.id, self.subject(edit), key[None], key[None]))
        return found

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Which leaf answers each prompt, and the others whose subject it mentions."""
        if not self._edits:
            return [Explanation(prompt, None, 1.0, []) for prompt in prompts]
        told = []
        for prompt, key in zip(prompts, self._read(prompts, all_tokens=False), strict=True):
            number = self._patch.choose(prompt, key)
            name = None if number == MAIN else self._patch.leaves[number].name
            reasons = [
                Reason(c.name, c.score, {"mentioned": c.mentioned, "alike": c.alike})
                for c in self._patch.candidates(prompt, key)
            ]
            told.append(Explanation(prompt, name, self._patch.signs.threshold, reasons))
        return told

    @staticmethod
    def _rivals(memory: FolioMemory, edit: Edit, key: Tensor, known: Mapping[str, Edit]) -> list[Candidate]:
        """Leaves that answer an edit's question with another target; key (hidden,) is its prompt's."""
        found = memory.candidates(edit.prompt, key)
        threshold = memory.signs.threshold
        return [c for c in found if c.score >= threshold and not same_answer(known[c.name].target, edit.target)]

    # writing

    def leaf(self, edit: Edit) -> Leaf:
        """An edit's subject, keys and values. The base model must carry no patch."""
        lm, patch = self.lm, self._patch
        batch = lm.batch([lm.encode(edit.prompt, edit.target, lm.ending_of(edit.prompt, edit.target))])
        _, columns, labels = batch.predictors(batch.target_mask | batch.ending_mask)
        keys = patch.read(batch)[0][0, columns]
        values = self.config.gain * self.solved(keys.float(), labels)
        return Leaf(edit.id, self.subject(edit), keys, values.to(keys.dtype))

    def subject(self, edit: Edit) -> str:
        """What a prompt must mention: its subject, else the names in its prompt, else its rarest words."""
        if edit.subject is not None:
            return edit.subject
        if names := names_in(edit.prompt):
            return " ".join(names)
        weights = self._patch.signs.weights
        return " ".join(sorted(set(words(edit.prompt)), key=lambda word: (-weights[word], word))[:FEW])

    def solved(self, keys: Tensor, labels: Tensor) -> Tensor:
        """What to add to the head's inputs (n, hidden) so that it says labels (n,); the loss is convex."""
        values = torch.zeros_like(keys, requires_grad=True)
        adam = torch.optim.Adam([values], lr=0.1 * float(self._patch.signs.scale.median()))
        enough = -math.log(self.config.confidence)
        with torch.enable_grad():
            for _ in range(self.config.steps):
                losses = F.cross_entropy(self._patch.logits(keys + values), labels.to(keys.device), reduction="none")
                if bool((losses < enough).all()):
                    break
                adam.zero_grad()
                losses.sum().backward()  # type: ignore[no-untyped-call]
                adam.step()
        return values.detach()

    # calibration

    @torch.no_grad()
    def calibrate(self) -> None:
        """Look at text of the model's own making, unless that has been done. The base model must carry no patch."""
        if self._patch.calibrated:
            return
        config, lm = self.config, self.lm
        texts = background_texts(lm, config.background, TEXT_LENGTH, config.seed, shortest=4)
        read = self._read(texts, all_tokens=True)
        center, scale = read.mean(0), read.std(0).clamp(min=1e-6)
        signs = Signs(WordWeights.over(texts), center, scale, self._patch.sharpness(texts[:BATCH]), config.threshold or 0.0)
        self._patch.signs = signs
        if config.threshold is None:
            self._patch.signs = replace(signs, threshold=self._threshold(texts))

    def _threshold(self, texts: Sequence[str]) -> float:
        prompts = list(dict.fromkeys(open_prompt(text) for text in texts))
        logs = self._patch.expected(self._read(prompts, all_tokens=False))
        halves = (0.5 * logs).exp()
        alike = halves @ halves.T
        onward = logs.argmax(-1)
        pairs = alike[onward[:, None] != onward[None, :]]
        if not len(pairs):
            return HIGHEST
        bound = pairs.kthvalue(max(1, math.ceil((1 - self.config.false_route) * len(pairs)))).values.item()
        return min(max(self.config.least, bound), HIGHEST)

    def _read(self, texts: Sequence[str], all_tokens: bool) -> Tensor:
        """What the head reads at all tokens of texts, or at the last of each, (n, hidden) in fp32."""

        def reading(part: list[str]) -> list[Tensor]:
            batch = self.lm.prompt_batch(part)
            inputs = self._patch.read(batch)[0]
            return [row[mask] if all_tokens else row[-1:] for row, mask in zip(inputs, batch.prompt_mask, strict=True)]

        return torch.cat(in_batches(texts, reading, BATCH, size=len)).float()

    # state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Keys and values of all leaves, (rows, hidden), and how many rows each has; what is known of the background."""
        patch = self._patch
        if not patch.calibrated:
            return {}, {}
        signs = patch.signs
        tensors = {"center": signs.center.cpu(), "scale": signs.scale.cpu()}
        leaves = [patch.leaves[self._numbers[edit.id]] for edit in self._edits]
        if leaves:
            tensors["keys"] = torch.cat([leaf.keys for leaf in leaves]).cpu()
            tensors["values"] = torch.cat([leaf.values for leaf in leaves]).cpu()
            tensors["rows"] = torch.tensor([len(leaf.keys) for leaf in leaves])
        places = {self._numbers[edit.id]: place for place, edit in enumerate(self._edits)}
        return tensors, {
            "counts": signs.weights.counts,
            "texts": signs.weights.texts,
            "sharpness": signs.sharpness,
            "threshold": signs.threshold,
            "subjects": [leaf.subject for leaf in leaves],
            "later": [[places[number], [places[n] for n in later]] for number, later in patch.later().items()],
        }

    def load_state(self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Be what `state` described."""
        self.clear()
        if not values:
            return
        weights = WordWeights(values["counts"], values["texts"])
        center, scale = (tensors[name].to(self.lm.device) for name in ("center", "scale"))
        self._patch.signs = Signs(weights, center, scale, values["sharpness"], values["threshold"])
        ends = [0, *accumulate(tensors["rows"].tolist())] if edits else [0]
        instead: dict[int, list[int]] = {}
        for number, later in values["later"]:
            for after in later:
                instead.setdefault(after, []).append(number)
        for number, (edit, subject, (start, stop)) in enumerate(zip(edits, values["subjects"], pairwise(ends), strict=True)):
            keys, added = (tensors[name][start:stop].to(self.lm.device) for name in ("keys", "values"))
            self._patch.add(number, Leaf(edit.id, subject, keys, added), instead.get(number, ()))
            self._numbers[edit.id] = number
        self._edits, self._next = list(edits), len(edits)
