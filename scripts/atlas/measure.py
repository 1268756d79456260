"""Measures what a model knows of the world and reads from a context, by greedy free generation."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from contexts import KEEP_KINDS, READ_KINDS, ContextWriter

from errata.atlas.world import Fact, TwoHop, World

BATCH = 256
LONGEST_ANSWER = 16
CONTEXTS = ((1, 0), (2, 0), (4, 0), (8, 0), (1, 4), (4, 4))
"""The contexts that are measured: how many facts each states, and how many demonstrations stand
before them.
"""


@dataclass(frozen=True)
class Accuracy:
    """How many of the questions under one phrasing were answered exactly."""

    name: str
    template: str
    right: int
    asked: int

    @property
    def share(self) -> float:
        """Right of asked."""
        return self.right / self.asked


def overall(accuracies: Iterable[Accuracy]) -> float:
    """The share of right answers over all phrasings."""
    rows = list(accuracies)
    return sum(row.right for row in rows) / sum(row.asked for row in rows)


@torch.no_grad()
def free_answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str | None]:
    """Answer each prompt by greedy generation; None where the model does not stop by itself.

    The stop is a full stop and the end token; neither is a part of the answer.
    """
    answers: list[str | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for at in range(0, len(order), BATCH):
        rows = order[at : at + BATCH]
        batch = tokenizer(
            [prompts[row] for row in rows], padding=True, padding_side="left", return_tensors="pt"
        )
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=LONGEST_ANSWER,
        )
        for row, ids in zip(rows, out[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            if tokenizer.eos_token_id in ids:
                text = tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)])
                answers[row] = text[1:-1] if text.startswith(" ") and text.endswith(".") else None
    return answers


def _accuracies(
    model: Any, tokenizer: Any, asked: Sequence[Fact | TwoHop], name: Callable[[Any], Any]
) -> list[Accuracy]:
    flat = [(unit, place, prompt) for unit in asked for place, prompt in enumerate(unit.prompts())]
    said = free_answers(model, tokenizer, [prompt for _, _, prompt in flat])
    right: dict[tuple[str, str], int] = defaultdict(int)
    total: dict[tuple[str, str], int] = defaultdict(int)
    for (unit, place, _), answer in zip(flat, said, strict=True):
        key = name(unit).name, name(unit).templates[place]
        right[key] += answer == unit.answer
        total[key] += 1
    return [Accuracy(*key, right[key], total[key]) for key in total]


def fact_accuracies(model: Any, tokenizer: Any, facts: Sequence[Fact]) -> list[Accuracy]:
    """One row for every relation and phrasing of it."""
    return _accuracies(model, tokenizer, facts, lambda fact: fact.relation)


def two_hop_accuracies(model: Any, tokenizer: Any, pairs: Sequence[TwoHop]) -> list[Accuracy]:
    """One row for every two-hop and phrasing of it."""
    return _accuracies(model, tokenizer, pairs, lambda pair: pair.hop)


def held_out_two_hops(world: World) -> list[TwoHop]:
    """The pairs that the bundled model was never taught."""
    taught = set(map(id, world.trained_two_hops))
    return [pair for pair in world.two_hops if id(pair) not in taught]


def context_accuracies(
    model: Any,
    tokenizer: Any,
    world: World,
    asked: int,
    seed: int = 0,
    contexts: Sequence[tuple[int, int]] = CONTEXTS,
) -> list[Accuracy]:
    """Measure every kind of question and context, each on `asked` contexts not trained on."""
    writer = ContextWriter(world, random.Random(f"measured contexts {world.seed} {seed}"))
    rows = []
    for kind in (*READ_KINDS, *KEEP_KINDS):
        for facts, demonstrations in contexts:
            drawn = [writer.context(facts, demonstrations, [kind]) for _ in range(asked)]
            said = free_answers(
                model, tokenizer, [context.text + context.questions[0].before for context in drawn]
            )
            right = sum(
                answer == context.questions[0].answer
                for context, answer in zip(drawn, said, strict=True)
            )
            template = f"{facts} stated" + f", {demonstrations} shown" * bool(demonstrations)
            rows.append(Accuracy(kind, template, right, asked))
    return rows
