"""`BodyReader` runs a model's body on rows of tokens, and continues them.

What all rows begin with is read once: in a chat model most of a prompt is its template, which all
prompts begin with.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from errata.lm.cache import cache_name
from errata.lm.encoding import Batch, Row
from errata.lm.hooks import capture_input, capture_output, stop_after, tensor_of
from errata.lm.lm import LM

SHARED_TOKENS = 8
"""Tokens that rows must begin with in common, at least, to be read once for all of them."""
CONTINUED = 32
"""Tokens by which rows that are read are continued, at most."""
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
"""Where configurations say how many columns some layers look back."""


@dataclass
class Prefill:
    """Rows of tokens that the model has read, ready to be continued.

    Attributes:
        cache: the key-value cache.
        ids: (rows, width), the tokens in the cache.
        mask: (rows, width) of those that are no padding.
        states: (rows, hidden), the head's inputs at the last tokens, in fp32.
    """

    cache: Cache
    ids: Tensor
    mask: Tensor
    states: Tensor

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only."""
        if len(rows) < len(self.mask):
            places = torch.tensor(rows, device=self.mask.device)
            self.cache.batch_select_indices(places)
            self.ids, self.mask = self.ids[places], self.mask[places]
            self.states = self.states[places]


class BodyReader:
    """Reads rows of tokens with the base model's body.

    No patch may be on the model, or it must let these calls pass: a router would take the shared
    tokens for a prompt.

    Args:
        lm: the base model.

    Attributes:
        body, head: the two modules.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self.body = lm.architecture.body_module(lm.model)
        self.head = lm.architecture.head_module(lm.model)
        self._arguments = inspect.signature(self.body.forward).parameters
        self._cache_name = cache_name(self.body)
        config = lm.model.config.get_text_config()
        windows = (getattr(config, name, None) for name in WINDOWS)
        self._window = min((each for each in windows if each), default=1 << 30)

    @torch.no_grad()
    def last_hidden_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the head's input at the last token of each row, (rows, hidden), in fp32."""
        if self._shared(rows):
            return self.prefill(rows).states
        batch = self._batch(rows)
        return self._hidden_states(batch.input_ids, batch.attention_mask)[:, -1].float()

    @torch.no_grad()
    def last_states(
        self, module: nn.Module, rows: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Return a module's inputs (rows, d_in) and outputs (rows, d_out) at each row's last token.

        What lies above the module does not run.
        """
        batch, begun = self._begin(rows)
        with capture_input(module) as inputs, capture_output(module) as outputs, stop_after(module):
            self._hidden_states(batch.input_ids, begun.mask, begun.cache)
        size = batch.input_ids.shape
        keys, values = (each[-1].reshape(*size, -1)[:, -1] for each in (inputs, outputs))
        return keys, values

    @torch.no_grad()
    def two_views(self, module: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return a module's outputs for each row: at its last token, and their mean over the
        second half of its tokens, (rows, 2, d_out) in fp32.

        What lies above the module does not run.
        """
        batch = self._batch(rows)
        mask = batch.attention_mask
        with capture_output(module) as outputs, stop_after(module):
            self._hidden_states(batch.input_ids, mask)
        states = outputs[-1].reshape(*mask.shape, -1).float()
        left = mask.flip(-1).cumsum(-1).flip(-1)  # tokens from here to the end
        half = mask.bool() & (left <= (mask.sum(-1, keepdim=True) + 1) // 2)
        means = (states * half[..., None]).sum(1) / half.sum(-1, keepdim=True)
        return torch.stack([states[:, -1], means], dim=1)

    @torch.no_grad()
    def continue_greedily(self, rows: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """Return the next `count` tokens of each row, the likeliest each time, to its end token.

        Fewer where the context of the longest row ends.
        """
        found: list[list[int]] = [[] for _ in rows]
        if context := self.lm.context_length:
            count = min(count, context - max(map(len, rows)) + 1)
        read, going_on = self.prefill(rows), list(range(len(rows)))
        for step in range(count):
            tokens = self.head.forward(read.states.to(self.lm.model.dtype)).argmax(-1)
            said = tokens.tolist()
            for row, token in zip(going_on, said, strict=True):
                found[row].append(token)
            kept = [place for place, token in enumerate(said) if token not in self.lm.end_ids]
            if not kept or step == count - 1:
                break
            going_on = [going_on[place] for place in kept]
            read.select(kept)
            self.extend(read, tokens[torch.tensor(kept, device=tokens.device)].to(self.lm.device))
        return found

    @torch.no_grad()
    def prefill(self, rows: Sequence[Sequence[int]]) -> Prefill:
        """Read rows of tokens; what all begin with (a chat template, mostly) is read once."""
        batch, begun = self._begin(rows)
        begun.states = self._hidden_states(batch.input_ids, begun.mask, begun.cache)[:, -1].float()
        return begun

    @torch.no_grad()
    def extend(self, prefill: Prefill, tokens: Tensor) -> None:
        """Read one more token, of tokens (rows,), in each row of a prefill."""
        prefill.mask = F.pad(prefill.mask, (0, 1), value=1)
        prefill.ids = torch.cat([prefill.ids, tokens[:, None].to(prefill.ids)], dim=1)
        hidden = self._hidden_states(tokens[:, None], prefill.mask, prefill.cache)
        prefill.states = hidden[:, -1].float()

    def _begin(self, rows: Sequence[Sequence[int]]) -> tuple[Batch, Prefill]:
        """Read what all rows begin with.

        Returns:
            The rests of the rows, padded; and the rows with what they begin with read, which have
            no states yet.
        """
        cache, shared = DynamicCache(config=self.lm.model.config), self._shared(rows)
        batch = self._batch([row[shared:] for row in rows])
        ids, mask = batch.input_ids, batch.attention_mask
        if shared:
            start = self._batch([rows[0][:shared]])
            self._hidden_states(start.input_ids, start.attention_mask, cache)
            cache.batch_repeat_interleave(len(rows))
            ids = torch.cat([start.input_ids.expand(len(rows), -1), ids], dim=1)
            mask = torch.cat([mask.new_ones(len(rows), shared), mask], dim=1)
        return batch, Prefill(cache, ids, mask, torch.empty(0))

    def _shared(self, rows: Sequence[Sequence[int]]) -> int:
        """Return how many tokens all rows begin with, leaving one to each; 0 if too few.

        The rows' rests are padded behind them. Only position ids tell that from other distances,
        and a layer that looks back over a number of columns counts the padding.
        """
        if len(rows) < 2 or "position_ids" not in self._arguments:
            return 0
        if max(map(len, rows)) + CONTINUED > self._window:
            return 0
        tokens = [tuple(row) for row in rows]
        first, last, most = min(tokens), max(tokens), min(map(len, tokens)) - 1
        shared = next((place for place in range(most) if first[place] != last[place]), most)
        return shared if shared >= SHARED_TOKENS else 0

    def _batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        return self.lm.batch([Row(tuple(ids), len(ids)) for ids in rows])

    def _hidden_states(self, ids: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Run the body on tokens (rows, width) that follow those in the cache.

        Args:
            mask: (rows, cached + width), 0 at padding.

        Returns:
            The head's inputs, (rows, width, hidden).
        """
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "use_cache": cache is not None,
        }
        if cache is not None:
            arguments[self._cache_name] = cache
        if "position_ids" in self._arguments:
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return tensor_of(self.body, self.body(**arguments))
