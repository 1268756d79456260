"""Memorizing attention: one late block (or a few) reads keys and values of retrieved facts.

Wu et al., "Memorizing Transformers", arXiv 2203.08913. One late block keeps keys and values of past
text, without positions; each query of each head reads the `top` of them by dot product, and a gate
for each head, a sigmoid of a learned number, weighs that against what the head reads of the text
itself: V = g V_memory + (1 - g) V_local. Here the past text are the edits, and a prompt's memory
holds those that are found for it; it is read from the prompt's last token on.

What departs from the paper: several blocks in a row may read, each its own keys and values of the
same text; the model stays frozen; beside the gates low-rank changes of the queries that go to the
memory, and of what is read, are trained, on examples of edits and not on a corpus; keys and queries
are not normalised, and are what the projections make, before a rotation and before norms of some
families; where no edit is found the base model answers, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from errata.config import NonNegativeInt, PositiveInt
from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.heads import heads_of
from errata.lm.hooks import capture_output, stop_after
from errata.methods.association.memorizing.patch import MemoryAttention, MemoryAttentionReader
from errata.methods.passage_method import PassageConfig, PassageMethod


@dataclass(frozen=True)
class MemorizingConfig(PassageConfig):
    """Settings of memorizing attention; more are described in `PassageConfig`.

    Attributes:
        block: the block that reads; None: at three quarters of the depth, as published.
        blocks: that many read, the last of them `block`; one, as published.
        top: keys that a query of a head reads.
        rank: of the changes of queries and of what is read.
    """

    method: ClassVar[str] = "memorizing"

    block: NonNegativeInt | None = None
    blocks: PositiveInt = 1
    top: PositiveInt = 32
    rank: PositiveInt = 32


class Memorizing(PassageMethod):
    """Reads the edits found for a prompt as keys and values of one late block, behind a gate."""

    config_class = MemorizingConfig
    paper = "arXiv 2203.08913"
    config: MemorizingConfig

    def __init__(self, config: MemorizingConfig, lm: LM) -> None:
        own = config.block
        last = max(0, lm.architecture.n_layers * 3 // 4 - 1) if own is None else own
        if config.blocks > last + 1:
            raise ConfigError(
                f"{config.blocks} blocks are to read, the last of them block {last}: there are "
                f"{last + 1} up to it; give fewer, or a later block."
            )
        self.blocks = range(last + 1 - config.blocks, last + 1)
        self.heads = [heads_of(lm, block) for block in self.blocks]
        super().__init__(config, lm)

    def reader(self) -> MemoryAttentionReader:
        """Return an attention for each block, with gates half open."""
        config, hidden = self.config, self.lm.architecture.hidden_size
        generator = torch.Generator().manual_seed(config.seed)
        made = [
            MemoryAttention(heads, hidden, config.top, config.rank, generator).to(self.lm.device)
            for heads in self.heads
        ]
        return MemoryAttentionReader(made)

    @property
    def width(self) -> int:
        """Of the keys and values of all heads of all blocks."""
        return sum(heads.kept for heads in self.heads)

    def states(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return the blocks' keys and values."""
        lm, batch = self.lm, self.lm.batch(rows)
        with contextlib.ExitStack() as hooks:
            made = [
                [
                    hooks.enter_context(capture_output(lm.model.get_submodule(path)))
                    for path in heads.inputs
                ]
                for heads in self.heads
            ]
            hooks.enter_context(stop_after(lm.architecture.block(lm.model, self.blocks[-1])))
            lm.run(batch, keep=1, use_cache=False)
        size, parts = batch.input_ids.shape, []
        for heads, outputs in zip(self.heads, made, strict=True):
            _, keys, values = heads.split([each[0].reshape(*size, -1) for each in outputs])
            parts += [keys.flatten(2), values.flatten(2)]
        kept = torch.cat(parts, dim=-1)
        masks = batch.attention_mask.bool().to(kept.device)
        return [states[mask] for states, mask in zip(kept, masks, strict=True)]
