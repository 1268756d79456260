"""Memoria: each edit leaves a few engrams, which come to mind, live on or are forgotten.

Park and Bak, "Memoria: Resolving Fateful Forgetting Problem through Human-Inspired Memory
Architecture", arXiv 2310.03052. An abstractor of learned queries turns a text's states into
engrams: working memory. The nearest engrams of short-term memory come to mind, and from these, by
how often engrams fired together, those of long-term memory. The model attends to them; what is
attended to lives longer, what is not is forgotten; short-term memory passes its oldest on.

What departs from the paper: a text is an edit, and is written once; the base model is frozen, and
abstractor and cross-attention (RETRO's, see there) are trained on examples of edits, the abstractor
through the engrams that are read; how long engrams live goes by what the new engrams attend to;
asking is not writing; where the router finds no edit the base model answers, bit for bit, and
elsewhere the prompt's own engrams say what comes to mind, and of an edit that the router finds, and
of which one engram comes to mind, all living ones are read. An undo writes all other edits again.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from errata.methods.association.retro.patch import CrossAttentionReader
from errata.patches.passages import Passage

QUERIES = 0.1
"""Standard deviation of the abstractor's queries at first: what they attend to differs."""


@dataclass(frozen=True)
class MemoriaConfig(RetroConfig):
    """Settings of Memoria; more are described in `RetroConfig`, and in `MemorySizes`.

    Attributes:
        engrams: of each edit.
        mind_weight: of the loss by which a prompt's engrams come to be nearest to its edit's.
    """

    method: ClassVar[str] = "memoria"

    engrams: PositiveInt = 8
    mind_weight: NonNegativeFloat = 1.0
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            abstractor = memoria_package().Abstractor(self.config.engrams, hidden, hidden)
            abstractor.requires_grad_(False).query_embeddings.normal_(std=QUERIES)
        for linear in (abstractor.value_transform, abstractor.feedforward, abstractor.output):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
        parts = {"attentions": patch.network, "abstractor": abstractor}
        patch.network = nn.ModuleDict(parts).to(self.lm.device)
        return patch

    def lesson_beside(self, passages: Sequence[Passage], asked: Sequence[Row]) -> Tensor:
        """Return the loss of what comes to mind, a scalar: prompts' own engrams are to be nearest
        to those of the edit that they ask for, by the mean squared distance that Memoria ranks by.
        """
        prompts = [Row(row.ids[: row.prompt_length], row.prompt_length) for row in asked]
        own = torch.stack([each.states for each in self.read(prompts)])
        stored = torch.stack([each.states for each in passages])
        apart = (own[:, None, :, None] - stored[None, :, None]).square().sum(-1).mean((2, 3))
        targets = torch.arange(len(asked))
        return self.config.mind_weight * F.cross_entropy(-apart / own.shape[-1] ** 0.5, targets)

    def read(self, rows: Sequence[Row]) -> list[Passage]:
        """Return the engrams of texts, (engrams, hidden) each; the model carries no patch."""
        abstractor: Any = self.network.get_submodule("abstractor")
        with torch.no_grad():
            states = [each.float() for each in self.states(rows)]
        return [
            Passage(abstractor(F.rms_norm(each, each.shape[-1:])[None])[0].cpu(), 0)
            for each in states
        ]

    @torch.no_grad()
    def context(self, prompt: str, facts: Sequence[Edit]) -> tuple[str, ...]:
        """Return the numbers of all living engrams of those facts of which one comes to mind."""
        ids, count = self.lm.encode_prompt(prompt), self.config.engrams
        (own,) = self.read([Row(tuple(ids), len(ids))])
        minds = {number // count for number in self.memory.reminded(own.states)}
        found = {fact.id for fact in facts}
        edits = {edit for edit in minds if self._written[edit] in found}
        return tuple(str(each) for each in self.memory.lifespans if each // count in edits)

    def _keep(self, texts: dict[str, Passage]) -> None:
        """Write the facts that are not in memory yet; all again if one that is there is gone."""
        self._texts = texts
        facts = [fact.id for fact in self.facts]
        if facts[: len(self._written)] != self._written:
            self.memory, self._written = self._empty(), []
        for fact in facts[len(self._written) :]:
            self.memory.write(texts[fact].states)
        self._written = facts
        places = {each: divmod(each, self.config.engrams) for each in self.memory.lifespans}
        self.patch.passages = {
            str(number): Passage(texts[facts[edit]].states[slot : slot + 1], -slot)
            for number, (edit, slot) in places.items()
        }

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
    def _shares(self, working: Tensor, engrams: Tensor) -> Tensor:
        """Return how much the first cross-attention has engrams attend to others, (n,)."""
        attention: Any = self.network.get_submodule("attentions.0")
        device = self.lm.device
        shares: Tensor = attention.shares(working[None].to(device), engrams[None].to(device))
        return shares[0].cpu()
