"""Memoria: each edit leaves a few engrams, which come to mind, live on or are forgotten.

Park and Bak, "Memoria: Resolving Fateful Forgetting Problem through Human-Inspired Memory
Architecture", arXiv 2310.03052. An abstractor of learned queries turns a text's states into
engrams: working memory. The nearest engrams of short-term memory come to mind, and from these, by
how often engrams fired together, those of long-term memory. The model attends to them; what is
attended to lives longer, what is not is forgotten; short-term memory passes its oldest on.

What departs from the paper: a text is an edit, and is written once; the base model is frozen, and
abstractor and cross-attention (RETRO's, see there) are trained on examples of edits, the abstractor
through the engrams that are read; it is told how far each token is from the edit's answer, and at
first each query looks at one such place, from shortly before the answer on; all engrams of an edit
are found by one vector, the frozen encoder's state at its prompt's last token, and not by what the
abstractor made of them (trained to be found by that, they are no longer read); how long engrams
live goes by what the new engrams attend to; asking is not writing; where the router finds no edit
the base model answers, bit for bit, and elsewhere the prompt's last state says what comes to mind,
and of an edit that the router finds, and of which one engram comes to mind, all living ones are
read. An undo writes all other edits again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.config import NonNegativeFloat, PositiveInt
from errata.edit import Edit
from errata.lm import LM
from errata.lm.encoding import Row
from errata.methods.association.memoria.memory import EngramMemory, MemorySizes, memoria_package
from errata.methods.association.retro.method import Retro, RetroConfig
from errata.methods.association.retro.patch import REACH, CrossAttentionReader
from errata.patches.passages import Passage
from errata.storage import state

QUERIES = 0.1
"""Standard deviation of what the abstractor's queries look for at first, beside a place."""
PLACE = 6.0
"""Log of how much more a query looks at its own place than at any other, at first."""
BEFORE = 4
"""One engram in so many is at first of a place before the answer."""


@dataclass(frozen=True)
class MemoriaConfig(RetroConfig):
    """Settings of Memoria; more are described in `RetroConfig`, and in `MemorySizes`.

    Attributes:
        engrams: of each edit.
    """

    method: ClassVar[str] = "memoria"

    engrams: PositiveInt = 8
    short_term: PositiveInt = 400
    reminded_short_term: PositiveInt = 8
    reminded_long_term: PositiveInt = 8
    search_depth: PositiveInt = 10
    lifespan: PositiveInt = 9
    lifespan_gain: NonNegativeFloat = 8.0


class Memoria(Retro):
    """Reads the engrams that a prompt brings to mind, by trained cross-attention."""

    config_class = MemoriaConfig
    paper = "arXiv 2310.03052"
    undo_is = "exact, by writing all other edits again"
    config: MemoriaConfig

    def __init__(self, config: MemoriaConfig, lm: LM) -> None:
        super().__init__(config, lm)
        self._written: list[str] = []
        self.memory = self._empty()

    def reader(self) -> CrossAttentionReader:
        """Return a cross-attention for each block, and the abstractor."""
        patch, hidden = super().reader(), self.lm.architecture.hidden_size
        count, width = self.config.engrams, hidden + 2 * REACH + 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            abstractor = memoria_package().Abstractor(count, width, width).requires_grad_(False)
            queries = abstractor.query_embeddings.normal_(std=QUERIES)
        for linear in abstractor.children():
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
        queries[0, :, hidden:] = PLACE * _places(torch.arange(count) - self.before)
        parts = {"attentions": patch.network, "abstractor": abstractor}
        patch.network = nn.ModuleDict(parts).to(self.lm.device)
        return patch

    @property
    def before(self) -> int:
        """The number of the engram that is at first of the answer's first token."""
        return max(1, self.config.engrams // BEFORE)

    def read(self, rows: Sequence[Row]) -> list[Passage]:
        """Return the engrams of texts, (engrams, hidden) each; the model carries no patch."""
        abstractor: Any = self.network.get_submodule("abstractor")
        with torch.no_grad():
            states = [_normal(each) for each in self.states(rows)]
        made = []
        for row, each in zip(rows, states, strict=True):
            places = _places(torch.arange(len(each)) - row.prompt_length).to(each)
            told = torch.cat([each, places], dim=-1)
            made.append(Passage(abstractor(told[None])[0, :, : each.shape[-1]].cpu(), self.before))
        return made

    @torch.no_grad()
    def stored(self, row: Row) -> Passage:
        """Return a text's engrams, and below them what they are found by, (engrams + 1, hidden);
        the model carries no patch.
        """
        (engrams,) = self.read([row])
        found_by = self._found_by(row.ids[: row.prompt_length])
        return Passage(torch.cat([engrams.states, found_by]), engrams.answer)

    @torch.no_grad()
    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Return the numbers of all living engrams of those facts of which one comes to mind."""
        own, count = self._found_by(self.lm.encode_prompt(prompt)), self.config.engrams
        minds = {number // count for number in self.memory.reminded(own)}
        found = {fact.id for fact in facts}
        edits = {edit for edit in minds if self._written[edit] in found}
        return tuple(str(each) for each in self.memory.lifespans if each // count in edits)

    def load_state(
        self, edits: Sequence[Edit], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state`."""
        if edits:
            rows = self.config.engrams + 1
            state.numbers(tensors, "lengths", len(edits), rows, rows)
        super().load_state(edits, tensors, values)

    def _keep(self, texts: dict[str, Passage]) -> None:
        """Write the facts that are not in memory yet; all again if one that is there is gone."""
        self._texts = texts
        facts = [fact.id for fact in self.facts]
        if facts[: len(self._written)] != self._written:
            self.memory, self._written = self._empty(), []
        for fact in facts[len(self._written) :]:
            self._written = [*self._written, fact]
            self.memory.write(texts[fact].states[-1:].expand(self.config.engrams, -1))
        self.patch.passages = {
            str(number): Passage(
                self._engram(number)[None], self.before - number % self.config.engrams
            )
            for number in self.memory.lifespans
        }

    def _engram(self, number: int) -> Tensor:
        """Return an engram, (hidden,)."""
        edit, slot = divmod(number, self.config.engrams)
        return self._texts[self._written[edit]].states[slot]

    def _found_by(self, ids: Sequence[int]) -> Tensor:
        """Return the state of a prompt's last token, (1, hidden)."""
        (states,) = self.states([Row(tuple(ids), len(ids))])
        return _normal(states)[-1:].cpu()

    def _empty(self) -> EngramMemory:
        config = self.config
        sizes = MemorySizes(
            config.short_term,
            config.reminded_short_term,
            config.reminded_long_term,
            config.search_depth,
            config.lifespan,
            config.lifespan_gain,
        )
        return EngramMemory(sizes, self._shares)

    @torch.no_grad()
    def _shares(self, new: Sequence[int], others: Sequence[int]) -> Tensor:
        """Return how much the first cross-attention has engrams attend to others, (n,)."""
        attention: Any = self.network.get_submodule("attentions.0")
        asking, there = (
            torch.stack([self._engram(number) for number in numbers])[None].to(self.lm.device)
            for numbers in (new, others)
        )
        shares: Tensor = attention.shares(asking, there)
        return shares[0].cpu()


def _places(offsets: Tensor) -> Tensor:
    """Return distances from an answer's first token, (n,), as one-hot vectors (n, 2 REACH + 1)."""
    return F.one_hot(offsets.clamp(-REACH, REACH) + REACH, 2 * REACH + 1).float()


def _normal(states: Tensor) -> Tensor:
    return F.rms_norm(states.float(), states.shape[-1:])
