"""`MemoryAttention` over stored keys and values; `MemoryAttentionReader` mixes it into heads."""

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
from errata.lm.heads import Heads
from errata.patches.passages import PassageReader

_QUERIES = "queries"


class MemoryAttention(nn.Module):
    """g V_memory + (1 - g) V_local, g a sigmoid gate for each head.

    V_memory is softmax(q k / sqrt(d)) v over the `top` keys with the largest q k, for each query
    and each head. Queries, and what is read, are adapted by low-rank changes, 0 at first.

    Args:
        heads: of the attention.
        hidden: width of the hidden states.
        top: keys for each query and head.
        rank: of the changes.
        generator: draws them.
    """

    def __init__(
        self, heads: Heads, hidden: int, top: int, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.heads, self.top = heads, top
        inner = heads.heads * heads.width

        def drawn(d_in: int) -> nn.Parameter:
            weights = torch.randn(rank, d_in, generator=generator) / math.sqrt(d_in)
            return nn.Parameter(weights, requires_grad=False)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape), requires_grad=False)

        self.gate = zeros(heads.heads)
        self.query_down, self.query_up = drawn(hidden), zeros(inner, rank)
        self.value_down, self.value_up = drawn(inner), zeros(inner, rank)

    def queries(self, hidden: Tensor, queries: Tensor) -> Tensor:
        """Return adapted queries (..., heads, width).

        Args:
            hidden: (..., hidden), what the queries were made of.
            queries: (..., heads, width).
        """
        change = F.linear(F.linear(hidden, self.query_down), self.query_up)
        return queries + torch.unflatten(change, -1, (self.heads.heads, -1))

    def forward(self, queries: Tensor, states: Tensor, mask: Tensor, local: Tensor) -> Tensor:
        """Return what is added to what the heads say, g (V_memory - V_local), as `local`.

        Args:
            queries: (rows, columns, heads, width).
            states: (rows, tokens, 2 * key heads * width), keys and values.
            mask: (rows, tokens) bool, which of them there are.
            local: (rows, columns, heads * width), V_local.
        """
        heads = self.heads
        both = torch.unflatten(states, -1, (2, heads.key_heads, heads.width))
        each = heads.heads // heads.key_heads
        keys, values = (
            part.repeat_interleave(each, dim=2).transpose(1, 2) for part in both.unbind(2)
        )
        scores = queries.transpose(1, 2) @ keys.mT / math.sqrt(heads.width)
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        if scores.shape[-1] > self.top:
            best = scores.topk(self.top, dim=-1).indices
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
            scores = scores.masked_fill(~kept, -torch.inf)
        read = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        read = read + F.linear(F.linear(read, self.value_down), self.value_up)
        gates = self.gate.sigmoid().repeat_interleave(heads.width)
        added: Tensor = gates * (read - local)
        return added


class MemoryAttentionReader(PassageReader):
    """Mix attention over passages into what some blocks' heads say.

    A passage's states are its keys and values in each of the blocks, one block after the other.

    Args:
        attentions: one for each block; they are on the model's device.
    """

    def __init__(self, attentions: Sequence[MemoryAttention]) -> None:
        super().__init__(nn.ModuleList(attentions))
        self.attentions = list(attentions)
        self._widths = [each.heads.kept for each in attentions]

    def _reading_hooks(self, lm: LM) -> list[RemovableHandle]:
        hooks = []
        for number, attention in enumerate(self.attentions):
            inputs, output = attention.heads.inputs, attention.heads.output
            makes, reads = lm.model.get_submodule(inputs[0]), lm.model.get_submodule(output)
            hooks += [
                makes.register_forward_hook(partial(self._keep_queries, number)),
                reads.register_forward_pre_hook(partial(self._mix, number)),
            ]
        return hooks

    def _keep_queries(
        self, number: int, _: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        """Keep the queries of the columns that read."""
        if (reading := self.reading) is None or (state := self._pass) is None:
            return
        rows, start = reading.rows.to(output.device), reading.start
        hidden, made = (
            each.reshape(*state.size, -1)[rows, start:].to(reading.passages.states)
            for each in (args[0], output)
        )
        attention = self.attentions[number]
        heads = attention.heads
        one = len(heads.inputs) == 1
        shape = heads.heads, heads.width
        queries: Tensor = heads.split([made])[0] if one else torch.unflatten(made, -1, shape)
        state.kept[_QUERIES] = attention.queries(hidden, queries)

    def _mix(self, number: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if (reading := self.reading) is None or (state := self._pass) is None:
            return None
        said: Tensor = args[0]
        local = said.reshape(*state.size, -1)
        passages = reading.passages
        states = torch.split(passages.states, self._widths, dim=-1)[number]
        asking = local[reading.rows.to(local.device), reading.start :].to(states)
        queries = state.kept.pop(_QUERIES)
        more = self.attentions[number](queries, states, passages.mask, asking)
        return (reading.added(local, more).reshape(said.shape), *args[1:])
