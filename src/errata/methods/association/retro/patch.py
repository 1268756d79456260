"""`CrossAttention` to states of passages; `CrossAttentionReader` adds it to what blocks make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.lm.hooks import tensor_of, with_output
from errata.lm.self_attention import SelfAttention
from errata.patches.passages import PassageReader, Passages

REACH = 16
"""Distances between a token and one of a passage from which on they are all one."""


class CrossAttention(nn.Module):
    """tanh(gate) W_o softmax(q k / sqrt(d) + b) v, with a gate of 0 at first: nothing is added.

    Queries are of a text's hidden states, keys and values of a passage's, all of them normalised to
    a root mean square of 1. b is a number for each head and each distance: how far a token is from
    the last of the prompt, less how far a passage's is from the first of its answer; 0 at first.

    Args:
        begins: the attention whose weights these are at first.
    """

    def __init__(self, begins: SelfAttention) -> None:
        super().__init__()
        self.heads, self.width = begins.heads, len(begins.query) // begins.heads

        def own(values: Tensor) -> nn.Parameter:
            return nn.Parameter(values.clone(), requires_grad=False)

        self.query, self.key = own(begins.query), own(begins.key)
        self.value, self.output = own(begins.value), own(begins.output)
        self.distance = own(begins.query.new_zeros(self.heads * (2 * REACH + 1)))
        self.gate = own(begins.query.new_zeros(()))

    def forward(
        self, hidden: Tensor, offsets: Tensor, passages: Passages, read: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return what is added to hidden states, (rows, columns, hidden) in fp32.

        Args:
            hidden: (rows, columns, hidden).
            offsets: (rows, columns), of each from its prompt's last token.
            passages: of the rows.
            read: their `keys_and_values`.
        """
        queries = self._split(_normal(hidden), self.query)
        apart = offsets[:, :, None] - passages.offsets[:, None, :]
        distance = self.distance.view(self.heads, -1)
        bias = distance[:, apart.clamp(-REACH, REACH) + REACH].transpose(0, 1)
        scores = queries @ read[0].mT / math.sqrt(self.width) + bias
        scores = scores.masked_fill(~passages.mask[:, None, None], -torch.inf)
        mixed = (scores.softmax(-1) @ read[1]).transpose(1, 2).flatten(2)
        return self.gate.tanh() * F.linear(mixed, self.output)

    def shares(self, hidden: Tensor, states: Tensor) -> Tensor:
        """Return how much hidden states (rows, columns, hidden) attend to states (rows, tokens,
        hidden) wherever they stand: the mean share of each, (rows, tokens).
        """
        keys, _ = self.keys_and_values(states)
        scores = self._split(_normal(hidden), self.query) @ keys.mT / math.sqrt(self.width)
        return scores.softmax(-1).mean((1, 2))

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, (rows, heads, tokens, head width), of states (rows, tokens, hidden)."""
        states = _normal(states)
        return self._split(states, self.key), self._split(states, self.value)

    def _split(self, states: Tensor, weights: Tensor) -> Tensor:
        made = torch.unflatten(F.linear(states, weights), -1, (self.heads, self.width))
        return made.transpose(1, 2)


class CrossAttentionReader(PassageReader):
    """Add cross-attention to the outputs of blocks.

    Args:
        layers: the blocks.
        attentions: one for each; they are of the model's device.
    """

    def __init__(self, layers: Sequence[int], attentions: nn.ModuleList) -> None:
        super().__init__(attentions)
        self.layers, self.attentions = list(layers), attentions

    def _reading_hooks(self, lm: LM) -> list[RemovableHandle]:
        return [
            lm.architecture.block(lm.model, layer).register_forward_hook(
                partial(self._read, number)
            )
            for number, layer in enumerate(self.layers)
        ]

    def _read(self, number: int, block: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
        if (reading := self.reading) is None:
            return None
        hidden, attention = tensor_of(block, output), self.attentions[number]
        passages = reading.passages
        if number not in passages.kept:
            passages.kept[number] = attention.keys_and_values(passages.states)  # type: ignore[operator]
        asking = hidden[reading.rows.to(hidden.device), reading.start :].to(passages.states)
        more = attention(asking, reading.offsets, passages, passages.kept[number])
        return with_output(output, reading.added(hidden, more))


def _normal(states: Tensor) -> Tensor:
    return F.rms_norm(states.float(), states.shape[-1:], eps=1e-6)
