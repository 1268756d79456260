"""RETRO: retrieved facts, encoded once, are read by cross-attention in some blocks.

Borgeaud et al., "Improving Language Models by Retrieving from Trillions of Tokens", arXiv
2112.04426. A frozen encoder turns what is retrieved into states; from a block on, every third block
attends to them by new weights, beside the frozen model's own (their "RETRO-fitting"); a chunk's
last token and those behind it read what was retrieved for it, so that nothing is seen ahead of its
time. Here a prompt is a chunk, and what is retrieved are the edits that are found for it.

What departs from the paper: the encoder is the model itself, up to a block, and its states are kept
with the edit, so that they do not depend on the prompt; the cross-attention stands behind a block,
not between its attention and its feed-forward network, with a tanh gate of zero at first (as in
Flamingo, arXiv 2204.14198), so that before training the model is the base model; it begins as the
attention of the block behind it, without positions, and not from nothing, for which a hundred steps
of training would not do; distances count from the prompt's end and the answer's beginning, and have
a learned number each; it is trained on examples of edits and not on a corpus; where no edit is
found the base model answers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from errata.config import NonNegativeFloat, NonNegativeInt, PositiveInt
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.hooks import capture_output, stop_after
from errata.lm.self_attention import self_attentions
from errata.methods.association.retro.patch import CrossAttention, CrossAttentionReader
from errata.methods.passage_method import PassageConfig, PassageMethod


@dataclass(frozen=True)
class RetroConfig(PassageConfig):
    """Settings of RETRO; more are described in `PassageConfig`.

    Attributes:
        first_block: where cross-attention begins; None: at nine of thirty-two, as published.
        every: blocks from one with cross-attention to the next.
        encoder_layer: whose outputs are a text's states; None: halfway up the blocks that read, so
            that none of them is far from what its attention knows to read.
        lr: lower than where weights are learned from nothing.
    """

    method: ClassVar[str] = "retro"

    first_block: NonNegativeInt | None = None
    every: PositiveInt = 3
    encoder_layer: NonNegativeInt | None = None
    lr: NonNegativeFloat = 3e-4


class Retro(PassageMethod):
    """Reads the edits found for a prompt by trained cross-attention in some blocks."""

    config_class = RetroConfig
    paper = "arXiv 2112.04426"
    config: RetroConfig

    def __init__(self, config: RetroConfig, lm: LM) -> None:
        depth = lm.architecture.n_layers
        first = depth * 9 // 32 if config.first_block is None else config.first_block
        own = config.encoder_layer
        self.encoder_layer = (first + depth - 1) // 2 if own is None else own
        for layer in (first, self.encoder_layer):
            lm.architecture.block(lm.model, layer)  # raises where there is none
        self.layers = list(range(first, depth, config.every))
        super().__init__(config, lm)

    def reader(self) -> CrossAttentionReader:
        """Return a cross-attention for each block, which adds nothing yet."""
        last = self.lm.architecture.n_layers - 1
        begins = self_attentions(self.lm, [min(layer + 1, last) for layer in self.layers])
        made = [CrossAttention(each) for each in begins]
        return CrossAttentionReader(self.layers, nn.ModuleList(made).to(self.lm.device))

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return self.lm.architecture.hidden_size

    def states(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return the encoder block's outputs."""
        batch = self.lm.batch(rows)
        block = self.lm.architecture.block(self.lm.model, self.encoder_layer)
        with capture_output(block) as outputs, stop_after(block):
            self.lm.run(batch, keep=1, use_cache=False)
        masks = batch.attention_mask.bool().to(outputs[0].device)
        return [states[mask] for states, mask in zip(outputs[0], masks, strict=True)]
