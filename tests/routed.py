"""A tiny model with side memories and known routes, and its oracle, a plain model with W + dW."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from families import tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from errata import EditModel, WiseConfig
from errata.lm import LM
from errata.lm.hooks import capture_input, capture_output
from errata.lm.weights import add_to_weight
from errata.methods.association.wise.patch import Memory, SideMemory
from errata.patches.routed import MAIN, ForwardState

PROMPTS = [
    "The capital",
    "Who wrote the book?",
    "The president of the United States lives in",
    "x",
    "Where is the tower? It stands",
    "The author of the book was born in London, and the company was founded by",
    "Q: 7 + 5 =",
    "zebra! zebra! zebra!",
]
LAYER = 2


@dataclass
class Routed:
    """An edited model, the plain base, the thresholds' route of every prompt."""

    model: EditModel
    patch: SideMemory
    plain: LM
    routes: list[int]
    log: list[list[int]] = field(default_factory=list)

    @cached_property
    def oracles(self) -> dict[int, LM]:
        """Route -> a model without any router that has the change of that route in its weights."""
        made = {MAIN: self.plain}
        for j, memory in enumerate(self.patch.memories):
            model = tiny_model(self.plain.model.config.model_type)
            made[j] = LM(model, self.plain.tokenizer)
            add_to_weight(made[j].architecture.value_module(model, LAYER), memory.delta)
        return made

    def oracle(self, prompt: str) -> LM:
        return self.oracles[self.routes[PROMPTS.index(prompt)]]

    def routes_of(self, prompts: Sequence[str]) -> list[int]:
        return [self.routes[PROMPTS.index(prompt)] for prompt in prompts]

    @contextmanager
    def watched(self) -> Iterator[list[list[int]]]:
        """The routes used in each forward call."""
        seen: list[list[int]] = []
        answer = self.patch._answer

        def logged(keys: Tensor, output: Tensor, now: ForwardState) -> Any:
            seen.append(now.route.tolist())
            return answer(keys, output, now)

        self.patch._answer = logged  # type: ignore[method-assign]
        try:
            yield seen
        finally:
            del self.patch._answer


def by_hand(lm: LM, delta: Tensor, prompt: str, score: str = "linear", pool: str = "mean") -> float:
    """The activation of one memory on one prompt, written down once more from the paper."""
    module = lm.architecture.value_module(lm.model, LAYER)
    ids = torch.tensor([lm.encode_prompt(prompt)])
    with torch.no_grad(), capture_input(module) as keys, capture_output(module) as values:
        lm.model(input_ids=ids)
    k, v = (seen[0].reshape(ids.shape[1], -1) for seen in (keys, values))
    change = k @ delta.T
    if score == "activated":
        act = SideMemory(lm, LAYER, score=score)._activation
        change = act(v + change) - act(v)
    norms = change.norm(dim=-1)
    return {"mean": norms.mean(), "max": norms.max(), "last": norms[-1]}[pool].item()


def routed(
    family: str, count: int = 1, score: str = "linear", pool: str = "mean", kind: str = "bytelevel"
) -> Routed:
    """Random memories whose thresholds part the prompts, with a clear gap, into some of each."""
    base: PreTrainedModel = tiny_model(family)
    tokenizer = tiny_tokenizer(kind)
    model = EditModel(base, WiseConfig(layer=LAYER, score=score, pool=pool), tokenizer)
    plain = LM(tiny_model(family), tokenizer)
    module = plain.architecture.value_module(plain.model, LAYER)
    batch = plain.prompt_batch(PROMPTS[:1])
    with torch.no_grad(), capture_input(module) as keys, capture_output(module) as values:
        plain.run(batch)
    size = 2.0 * values[0].norm() / keys[0].norm() / plain.architecture.d_out**0.5
    draw = torch.Generator().manual_seed(count)
    shape = (plain.architecture.d_out, plain.architecture.d_in)
    patch = model.method.patch
    assert isinstance(patch, SideMemory)
    found = []
    for _ in range(count):
        delta = torch.randn(shape, generator=draw) * size
        found.append([by_hand(plain, delta, prompt, score, pool) for prompt in PROMPTS])
        order = sorted(found[-1])
        low, high = max(pairwise(order[2:-1]), key=lambda pair: pair[1] - pair[0])
        patch.memories.append(Memory(delta, (low + high) / 2))
    routes = []
    for i in range(len(PROMPTS)):
        best = max(range(count), key=lambda j: found[j][i])
        routes.append(best if found[best][i] > patch.memories[best].threshold else MAIN)
    assert MAIN in routes and set(routes) - {MAIN}, routes
    model._install()
    return Routed(model, patch, plain, routes)
