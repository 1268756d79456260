"""Folio: an edit is a leaf of its own; the right one is found, and then only that one speaks. errata's own method.

WISE (arXiv 2405.14768) put edits beside the main memory, behind a router. Its limits are that the router must tell memories
apart by how loud they are, that learning one edit after another forgets, and that an edit costs tens of passes. Here:

- *Place.* The head's input: nothing above it but the head, so the loss of a value is convex, one pass of the model and
  some steps through the head alone solve it, and what it does on another wording is known: it adds so much to each logit.
- *Write.* For each token of the answer, end included, a value is added to the head's input until the token has the
  probability `confidence`; then times `gain`, for wordings on which the model is surer of what it said before. Every edit is
  solved alone. Nothing is written over anything, so order does not matter and undo is dropping the leaf.
- *Router.* A leaf speaks when the prompt mentions its subject and the base model would go on from the prompt as from the
  edit's own; see `patches.folio`. What it takes to speak is calibrated on text of the model's own making; by the same text
  it is found where the base model's answers begin to tell: behind a *lead* that it would say to any prompt.

An edit that answers a stored one's question otherwise takes its place; undone, the other is back.
"""

from __future__ import annotations

import math
from collections import Counter
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
from errata.patches.folio import Asked, Candidate, FolioMemory, Leaf, Signs
from errata.patches.routed import MAIN
from errata.report import Explanation, Reason
from errata.statistics import background_texts, names_in, open_prompt
from errata.words import WordWeights, words

TEXT_LENGTH = 24
"""Tokens of a background text, at most."""
BATCH = 64
HIGHEST = 0.98
"""The threshold is never above: an edit's own prompt, read in another batch or precision, must reach it."""
GENERIC = 0.5
"""What the model expects next tells nothing where half of the background's prompts lead it to expect the same so far."""
RARE = 0.6
"""The weight from which a word that opens a prompt with a capital letter is taken for a name."""
LONGEST_LEAD = 8
"""Tokens; a model that has told nothing by then is compared by its first."""
JUDGES = 16
"""Prompts of the background by which leads are found."""
LEARNED = 128
"""Prompts of the background whose own leads are looked at for the threshold, and of these leads the commonest few."""
FEW = 3
"""An edit that names neither subject nor any name is known by so many of its rarest words."""


@dataclass(frozen=True)
class FolioConfig(MethodConfig):
    """Settings of Folio.

    Attributes:
        gain: factor on the values that are solved.
        confidence: a value is solved when its token has this probability.
        steps: L-BFGS iterations per edit, at most.
        mentioned: the share of the subject that a prompt must mention, its rare words counting most.
        threshold: a leaf speaks when its score is not below; None: `least`, or more where `false_route` asks for it.
        least: the lowest threshold.
        false_route: of pairs of prompts of the model's own making that it answers differently, the share that may reach the
            threshold.
        background: texts of the model's own making.
    """

    method: ClassVar[str] = "folio"

    gain: float = 2.0
    confidence: float = 0.9999
    steps: int = 50
    mentioned: float = 0.7
    threshold: float | None = None
    least: float = 0.3
    false_route: float = 0.05
    background: int = 512

    def __post_init__(self) -> None:
        for name in ("steps", "background"):
            check_range(name, getattr(self, name), 1, math.inf)
        check_range("gain", self.gain, 0, math.inf)
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
        self._patch = FolioMemory(lm, config.mentioned)
        self._numbers: dict[str, int] = {}
        self._next = 0
        self._expected_after: dict[tuple[int, ...], Tensor] = {}

    @property
    def patch(self) -> FolioMemory:
        """The leaves."""
        return self._patch

    def write(self, edits: Sequence[Edit], progress: Progress = no_progress) -> None:
        """Add edits; each is a leaf that knows of no other, but for those whose place it takes."""
        self.calibrate()
        for edit in edits:
            leaf = self.leaf(edit)
            asked = Asked(edit.prompt, self.lm.encode_prompt(edit.prompt), leaf.keys[0])
            earlier = [each.number for each in self._rivals(self._patch, [edit], [asked])[0]]
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
        new = FolioMemory(self.lm, self.config.mentioned)
        new.signs = self._patch.signs
        prompts = self._asked([edit.prompt for edit in edits])
        leads = self._leads([asked.ids for asked in prompts], torch.stack([asked.key for asked in prompts]))
        stored = self._rivals(self._patch, edits, prompts)
        found = []
        for number, (edit, asked, (lead, sign)) in enumerate(zip(edits, prompts, leads, strict=True)):
            both = [*stored[number], *self._rivals(new, [edit], [asked])[0]]
            found += [(edit.id, candidate.name) for candidate in both]
            new.add(number, Leaf(edit.id, self.subject(edit), edit.target, lead, sign, (), asked.key[None], asked.key[None]))
        return found

    def explain(self, prompts: Sequence[str]) -> list[Explanation]:
        """Which leaf answers each prompt, and the others whose subject it mentions."""
        if not self._edits:
            return [Explanation(prompt, None, 1.0, []) for prompt in prompts]
        asked = self._asked(prompts)
        told = []
        for prompt, found in zip(prompts, self._patch.candidates(asked), strict=True):
            number = self._patch.speaker(found)
            name = None if number == MAIN else self._patch.leaves[number].name
            reasons = [Reason(c.name, c.score, {"mentioned": c.mentioned, "alike": c.alike}) for c in found]
            told.append(Explanation(prompt, name, self._patch.signs.threshold, reasons))
        return told

    @staticmethod
    def _rivals(memory: FolioMemory, edits: Sequence[Edit], prompts: Sequence[Asked]) -> list[list[Candidate]]:
        """For each edit, asked so, the leaves that answer its question with another target."""
        if memory.empty:
            return [[] for _ in edits]
        return [
            [
                each
                for each in found
                if each.score >= memory.signs.threshold and not same_answer(memory.leaves[each.number].target, edit.target)
            ]
            for edit, found in zip(edits, memory.candidates(prompts), strict=True)
        ]

    # writing

    def leaf(self, edit: Edit) -> Leaf:
        """An edit's subject, keys and values. The base model must carry no patch."""
        lm, patch = self.lm, self._patch
        batch = lm.batch([lm.encode(edit.prompt, edit.target, lm.ending_of(edit.prompt, edit.target))])
        _, columns, labels = batch.predictors(batch.target_mask | batch.ending_mask)
        keys = patch.read(batch)[0][0, columns]
        values = self.config.gain * self.solved(keys.float(), labels)
        ((lead, sign),) = self._leads([lm.encode_prompt(edit.prompt)], keys[:1])
        return Leaf(
            edit.id,
            self.subject(edit),
            edit.target,
            lead,
            sign.to(keys.dtype),
            tuple(labels.tolist()),
            keys,
            values.to(keys.dtype),
        )

    def subject(self, edit: Edit) -> str:
        """What a prompt must mention: its subject, else the names in its prompt, else its rarest words.

        A capital letter at the prompt's beginning makes a name of a rare word only.
        """
        if edit.subject is not None:
            return edit.subject
        if names := names_in(edit.prompt):
            return " ".join(names)
        weights = self._patch.signs.weights
        rarest = sorted(set(words(edit.prompt)), key=lambda word: (-weights[word], word))[:FEW]
        opener = words(edit.prompt.split()[0])[:1] if edit.prompt[:1].isupper() else []
        return " ".join(opener if opener and weights[opener[0]] >= RARE else rarest)

    def solved(self, keys: Tensor, labels: Tensor) -> Tensor:
        """What to add to the head's inputs (n, hidden) so that it says labels (n,).

        Each token's loss counts down to that of `confidence`, with what is found and with `gain` times that: a token from
        far behind may overtake it between the two. Both are convex, and some tokens lie far away, so: L-BFGS. The best that
        was seen is kept, as the line search may lose itself where nothing slopes any more.
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
            losses = F.cross_entropy(self._patch.logits(both), labels, reduction="none")
            missing = F.relu(losses - enough).sum()
            if missing.item() < least:
                least, best = missing.item(), values.detach().clone()
            missing.backward()  # type: ignore[no-untyped-call]
            return missing

        solver = torch.optim.LBFGS(
            [values], max_iter=self.config.steps, history_size=20, tolerance_change=1e-7, line_search_fn="strong_wolfe"
        )
        with torch.enable_grad():
            solver.step(loss)  # type: ignore[no-untyped-call]
        return scale * best

    # calibration

    @torch.no_grad()
    def calibrate(self) -> None:
        """Look at text of the model's own making, unless that has been done. The base model must carry no patch."""
        if self._patch.calibrated:
            return
        config, lm = self.config, self.lm
        texts = background_texts(lm, config.background, TEXT_LENGTH, config.seed, shortest=4)
        read = self._read(texts)
        center, scale = read.mean(0), read.std(0).clamp(min=1e-6)
        judges = tuple(open_prompt(text) for text in texts[:JUDGES])
        sharpness = self._patch.sharpness(texts[:BATCH])
        signs = Signs(WordWeights.over(texts), center, scale, sharpness, config.threshold or 0.0, judges)
        self._patch.signs = signs
        if config.threshold is None:
            self._patch.signs = replace(signs, threshold=self._threshold(texts))

    def _threshold(self, texts: Sequence[str]) -> float:
        prompts = self._asked(list(dict.fromkeys(open_prompt(text) for text in texts)))
        ids, keys = [asked.ids for asked in prompts], torch.stack([asked.key for asked in prompts])
        leads = [lead for lead, _ in self._leads(ids[:LEARNED], keys[:LEARNED])]
        pairs = []
        for lead, _ in Counter(leads).most_common(FEW):
            logs = self._patch.expected(self._tips([[*row, *lead] for row in ids]) if lead else keys)
            halves, onward = (0.5 * logs).exp(), logs.argmax(-1)
            pairs.append((halves @ halves.T)[onward[:, None] != onward[None, :]])
        alike = torch.cat(pairs)
        if not len(alike):
            return HIGHEST
        bound = alike.kthvalue(max(1, math.ceil((1 - self.config.false_route) * len(alike)))).values.item()
        return min(max(self.config.least, bound), HIGHEST)

    @torch.no_grad()
    def _leads(self, prompts: Sequence[Sequence[int]], keys: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
        """(lead, the head's input behind it) of prompts, given as tokens and the head's inputs (n, hidden) behind them."""
        leads: list[list[int]] = [[] for _ in prompts]
        tips = list(keys)
        found: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        looking = list(range(len(prompts)))
        for depth in range(LONGEST_LEAD + 1):
            logs = self._patch.expected(torch.stack([tips[row] for row in looking]))
            further = []
            for row, expected in zip(looking, logs, strict=True):
                if ((0.5 * expected).exp() @ self._after(tuple(leads[row])).T).median() < GENERIC:
                    found[row] = tuple(leads[row]), tips[row]
                elif depth < LONGEST_LEAD and (token := int(expected.argmax())) not in self.lm.end_ids:
                    leads[row].append(token)
                    if len(prompts[row]) + depth + 1 < (self.lm.context_length or math.inf):
                        further.append(row)
            looking = further
            if not looking:
                break
            for row, tip in zip(looking, self._tips([[*prompts[row], *leads[row]] for row in looking]), strict=True):
                tips[row] = tip
        return [found.get(row, ((), keys[row])) for row in range(len(prompts))]

    def _after(self, lead: tuple[int, ...]) -> Tensor:
        """Square roots of what the base model expects behind the judges and a lead, (judges, vocabulary)."""
        if lead not in self._expected_after:
            if len(self._expected_after) >= JUDGES:  # each is as large as a few rows of the head
                self._expected_after.clear()
            tips = self._tips([[*self.lm.encode_prompt(prompt), *lead] for prompt in self._patch.signs.judges])
            self._expected_after[lead] = (0.5 * self._patch.expected(tips)).exp()
        return self._expected_after[lead]

    def _tips(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.stack(in_batches(rows, lambda part: list(self._patch.tips(part)), BATCH, size=len)).float()

    def _asked(self, prompts: Sequence[str]) -> list[Asked]:
        ids = [self.lm.encode_prompt(prompt) for prompt in prompts]
        return [Asked(*each) for each in zip(prompts, ids, self._tips(ids), strict=True)]

    def _read(self, texts: Sequence[str]) -> Tensor:
        """What the head reads at all tokens of texts, (n, hidden) in fp32."""

        def reading(part: list[str]) -> list[Tensor]:
            batch = self.lm.prompt_batch(part)
            inputs = self._patch.read(batch)[0]
            return [row[mask] for row, mask in zip(inputs, batch.prompt_mask, strict=True)]

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
            tensors["signs"] = torch.stack([leaf.sign for leaf in leaves]).cpu()
            tensors["tokens"] = torch.tensor([token for leaf in leaves for token in leaf.tokens])
            tensors["rows"] = torch.tensor([len(leaf.keys) for leaf in leaves])
        places = {self._numbers[edit.id]: place for place, edit in enumerate(self._edits)}
        return tensors, {
            "counts": signs.weights.counts,
            "texts": signs.weights.texts,
            "sharpness": signs.sharpness,
            "threshold": signs.threshold,
            "judges": signs.judges,
            "leads": [list(leaf.lead) for leaf in leaves],
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
        self._patch.signs = Signs(weights, center, scale, values["sharpness"], values["threshold"], tuple(values["judges"]))
        ends = [0, *accumulate(tensors["rows"].tolist())] if edits else [0]
        instead: dict[int, list[int]] = {}
        for number, later in values["later"]:
            for after in later:
                instead.setdefault(after, []).append(number)
        places = zip(edits, values["subjects"], values["leads"], pairwise(ends), strict=True)
        for number, (edit, subject, lead, (start, stop)) in enumerate(places):
            keys, added = (tensors[name][start:stop].to(self.lm.device) for name in ("keys", "values"))
            sign = tensors["signs"][number].to(self.lm.device)
            tokens = tuple(tensors["tokens"][start:stop].tolist())
            self._patch.add(
                number, Leaf(edit.id, subject, edit.target, tuple(lead), sign, tokens, keys, added), instead.get(number, ())
            )
            self._numbers[edit.id] = number
        self._edits, self._next = list(edits), len(edits)
