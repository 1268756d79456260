"""The second stage of building the bundled model: it learns to read a context.

A context and the questions after it share a row: every question sees the context and itself, and
stands where it would stand alone. Ordinary documents are read on, so that nothing is forgotten. For
the first half a line's last state is also drawn to what it was, alone, in the model that came in:
what that model knows is found again among other lines much sooner.
"""

from __future__ import annotations

import copy
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from checkpoint import SEED, Run, batches
from contexts import KEEP_KINDS, READ_KINDS, Context, ContextWriter, Line

from errata.atlas import World

READING_STEPS = 6000
RATE, WARM = 2e-3, 50
CONTEXT_TOKENS, ORDINARY_TOKENS = 1024, 384
"""How many tokens of contexts, and of ordinary documents, a step reads."""
QUESTION_WEIGHT = 0.2
"""The loss on a question's own tokens; its answer has 1, what is stated has none."""
BEGIN, END = 1, 2
Doc = tuple[list[int], int]


@dataclass
class Row:
    """Tokens, each with its loss weight, its position, and its part (all parts see part 0).

    `answers` are (begin, end, name in the log). `views` are lines as they stand alone, and where
    the last so many of their tokens stand in the row: (ids, end, how many). `unit` is the number of
    an ordinary document's fact.
    """

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    answers: list[tuple[int, int, str]] = field(default_factory=list)
    views: list[tuple[list[int], int, int]] = field(default_factory=list)
    unit: int = -1

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[int], weight: float, part: int = 0, at: int | None = None) -> None:
        """Append tokens, which go on where the row stands or from position `at`."""
        at = len(self.ids) if at is None else at
        self.ids += ids
        self.weights += [weight] * len(ids)
        self.positions += range(at, at + len(ids))
        self.parts += [part] * len(ids)


class Encoder:
    """Contexts to rows."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokens = cache(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])

    def row(self, context: Context) -> Row:
        """The context, and its questions side by side."""
        row = Row()
        row.add([BEGIN], 0.0)
        for line in context.lines:
            asked = line.kind != "stated"
            row.add(self.tokens(line.before), QUESTION_WEIGHT * asked)
            self.view(row, line)
            row.add(self.tokens(f" {line.answer}."), 1.0 * asked)
            row.add(self.tokens(line.end), 0.0)
        width = len(row.ids)
        for part, line in enumerate(context.questions, start=1):
            before, answer = self.tokens(line.before), [*self.tokens(f" {line.answer}."), END]
            row.add(before, QUESTION_WEIGHT, part, width)
            self.view(row, line)
            row.answers.append(
                (len(row.ids), len(row.ids) + len(answer), f"{line.kind} {context.stated}")
            )
            row.add(answer, 1.0, part, width + len(before))
            if line.kind in KEEP_KINDS:
                self.view(row, line, answer)
        return row

    def view(self, row: Row, line: Line, answer: Sequence[int] = ()) -> None:
        """Mark the end of a prompt, as far as it stands alone, and of `answer`."""
        alone, within = self.tokens(line.prompt), self.tokens(line.before)
        shared = next((n for n in range(len(alone)) if alone[-1 - n] != within[-1 - n]), len(alone))
        left = int(line.kind in READ_KINDS)
        row.views.append(
            (
                [BEGIN, *alone[: len(alone) - left], *answer],
                len(row.ids) - left,
                shared - left + len(answer),
            )
        )


def ordinary_row(doc: Doc, unit: int) -> Row:
    """A document of the first stage, or prose, as a row."""
    ids, start = doc
    row = Row(unit=unit)
    row.add(ids[:1], 0.0)
    row.add(ids[1 : start or len(ids)], 0.1 if start else 0.3)
    if start:
        row.answers.append((start, len(ids), "ordinary"))
        row.add(ids[start:], 1.0)
    return row


def collate(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, weights, positions, and what is seen from where (a mask that is added)."""
    width = max(len(row.ids) for row in rows)

    def padded(name: str, value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(
            [getattr(row, name) + [value] * (width - len(row.ids)) for row in rows], dtype=dtype
        )

    parts = padded("parts", -1, torch.long)
    seen = (parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])
    seen &= torch.ones(width, width, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(
        ~seen, torch.finfo(torch.bfloat16).min
    )
    return (
        padded("ids", 0, torch.long),
        padded("weights", 0, torch.float),
        padded("positions", 0, torch.long),
        mask[:, None],
    )


class Reading(Run):
    """The run: model, optimizer, and how well each fact is still known; all in the checkpoint."""

    def __init__(
        self, world: World, tokenizer: Any, facts: Any, steps: int, checkpoint: Path
    ) -> None:
        """Go on from `facts`, the first stage's run: its model and its documents."""
        self.model, self.docs, self.prose, self.share = (
            facts.model,
            facts.docs,
            facts.prose,
            facts.share,
        )
        self.steps, self.checkpoint = steps, checkpoint
        self.before = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.encoder = Encoder(tokenizer)
        self.writer = ContextWriter(world, random.Random(SEED))
        self.loss = [0.1] * len(self.docs)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        self.right: dict[str, list[bool]] = defaultdict(list)
        self.begin()

    def growth(self) -> float:
        """Return how far contexts have grown: from a tenth to three quarters of the run."""
        return min(1.0, max(0.0, (self.step / self.steps - 0.1) / 0.65))

    def draw(self, rng: random.Random) -> Iterator[list[list[Row]]]:
        """The next steps: for each, contexts, and ordinary documents by what they still lack."""
        self.writer.rng = rng
        lessons = [self.encoder.row(self.writer.lesson(self.growth())) for _ in range(200)]
        contexts = batches(sorted(lessons, key=Row.__len__), Row.__len__, CONTEXT_TOKENS, rng)
        chosen = self.chosen(rng, len(contexts) * ORDINARY_TOKENS // 20)
        rows = [ordinary_row(rng.choice(self.docs[unit]), unit) for unit in chosen]
        rows += [ordinary_row(rng.choice(self.prose), -1) for _ in range(len(rows) * 4 // 100)]
        ordinary = batches(sorted(rows, key=Row.__len__), Row.__len__, ORDINARY_TOKENS, rng)
        for place, context in enumerate(contexts):
            yield [context, ordinary[place % len(ordinary)]]

    def strangeness(self, rows: list[Row], states: torch.Tensor) -> torch.Tensor:
        """How far the lines' last states are from what they were alone, in the model that came in:
        relative, squared.
        """
        views = [(place, *view) for place, row in enumerate(rows) for view in row.views]
        width = max(len(ids) for _, ids, _, _ in views)
        alone = self.before.model(
            torch.tensor([ids + [0] * (width - len(ids)) for _, ids, _, _ in views])
        ).last_hidden_state
        pairs = [
            (place, end - back, index, len(ids) - back)
            for index, (place, ids, end, count) in enumerate(views)
            for back in range(1, count + 1)
        ]
        row, at, view, alone_at = torch.tensor(pairs).T
        here, there = states[row, at].float(), alone[view, alone_at].float()
        return ((here - there).square().sum(-1) / there.square().sum(-1)).mean()

    def losses(self, rows: list[Row]) -> tuple[torch.Tensor, float, torch.Tensor]:
        """Sum the weighted loss of rows and the weights, and measure the lines' surprise."""
        ids, weights, positions, mask = collate(rows)
        wanted, aims = weights[:, 1:] > 0, ids[:, 1:]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = self.model.model(
                input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
            )[0]
            logits = self.model.lm_head(states[:, :-1][wanted]).float()
            early = rows[0].views and self.step < self.steps / 2
            strange = self.strangeness(rows, states) if early else torch.zeros(())
        each = F.cross_entropy(logits, aims[wanted], reduction="none")
        loss, missed = torch.zeros(wanted.shape), torch.zeros(wanted.shape, dtype=torch.bool)
        loss[wanted], missed[wanted] = each.detach(), logits.argmax(-1) != aims[wanted]
        for place, row in enumerate(rows):
            for start, end, name in row.answers:
                self.right[name].append(not missed[place, start - 1 : end - 1].any())
                if row.unit >= 0:
                    self.loss[row.unit] = 0.7 * self.loss[row.unit] + 0.3 * float(
                        loss[place, start - 1 : end - 1].max()
                    )
        self.tokens += sum(len(row.ids) for row in rows)
        return (each * weights[:, 1:][wanted]).sum(), float(weights.sum()), strange

    def learn(self, groups: list[list[Row]]) -> None:
        """Take one step."""
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (self.step + 1) / WARM) * max(cosine, 0.02)
        losses, weights, strange = zip(*map(self.losses, groups), strict=True)
        (sum(losses) / sum(weights) + sum(strange)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def progress(self) -> str:
        """The share of right answers to each kind of question."""
        shares = ", ".join(
            f"{name} {sum(right) / len(right):.2f}" for name, right in sorted(self.right.items())
        )
        self.right.clear()
        return shares
