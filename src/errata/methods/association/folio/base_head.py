"""`BaseHead`: the inputs of the base model's output head, and the predictions it makes from them.

`Calibrator` and `Leaves` use it. It may be called inside a forward pass of the edited model:
`bypass` tells the patch to leave the calls of this thread alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from errata.errors import ArchitectureError
from errata.lm import LM
from errata.lm.encoding import Batch, Row
from errata.lm.hooks import PerThread, capture_output, tensor_of

SHARED_TOKENS = 8
"""Tokens that rows must begin with in common, at least, to be read once for all of them."""


@dataclass
class Prefill:
    """Rows of tokens that the base model has read, ready to be continued.

    Attributes:
        cache: the key-value cache.
        mask: (rows, width) of the tokens in the cache that are no padding.
        states: (rows, hidden), the head's inputs at the last tokens, in fp32.
    """

    cache: Cache
    mask: Tensor
    states: Tensor

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only."""
        if len(rows) < len(self.mask):
            places = torch.tensor(rows, device=self.mask.device)
            self.cache.batch_select_indices(places)
            self.mask, self.states = self.mask[places], self.states[places]


class BaseHead:
    """The output head of the base model, and the body whose output it reads.

    Args:
        lm: the base model.

    Attributes:
        body, head: the two modules.
        logit_scale: factor from the head's output to the model's logits, which some families
            scale; see `fit_logit_scale`.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self.body = lm.architecture.body_module(lm.model)
        self.head = lm.architecture.head_module(lm.model)
        self.logit_scale = 1.0
        self._bypass = PerThread(False)
        self._arguments = inspect.signature(self.body.forward).parameters

    @property
    def bypass(self) -> bool:
        """Whether this thread is calling the base model, so that patches must change nothing."""
        return self._bypass.get()

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the head predicts."""
        return int(self.lm.model.get_output_embeddings().weight.shape[0])

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Tensor:
        """Return the base model's head inputs at all tokens, (batch, width, hidden)."""
        return self._hidden_states(batch.input_ids, batch.attention_mask)

    @torch.no_grad()
    def run(self, batch: Batch, keep: int | None = None) -> tuple[Tensor, Tensor]:
        """Run the model with whatever is installed on it.

        Returns:
            The head's inputs (batch, width, hidden) and the logits of the last `keep` columns, or
            of all, (batch, columns, vocabulary).
        """
        with capture_output(self.body) as inputs:
            logits: Tensor = self.lm.run(batch, keep).logits
        return inputs[0], logits

    @torch.no_grad()
    def fit_logit_scale(self, texts: Sequence[str]) -> None:
        """Set `logit_scale` by least squares at the last tokens of texts.

        Raises:
            ArchitectureError: the model's logits are no multiple of its head's output.
        """
        inputs, logits = self.run(self.lm.prompt_batch(texts), keep=1)
        outputs, logits = self.head.forward(inputs[:, -1]).float(), logits[:, -1].float()
        scale = float((outputs * logits).sum() / outputs.square().sum().clamp(min=1e-9))
        agreement = (outputs.argmax(-1) == logits.argmax(-1)).float().mean()
        if not bool(agreement > 0.9) or scale <= 0:
            raise ArchitectureError(
                "this model does something between its body and its head; folio cannot write there."
            )
        self.logit_scale = scale

    @torch.no_grad()
    def last_hidden_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the base model's head input at the last token of each row, (rows, hidden)."""
        if self._shared(rows):
            return self.prefill(rows).states
        batch = self._batch(rows)
        return self._hidden_states(batch.input_ids, batch.attention_mask)[:, -1].float()

    @torch.no_grad()
    def prefill(self, rows: Sequence[Sequence[int]]) -> Prefill:
        """Read rows of tokens; what all begin with (a chat template, mostly) is read once."""
        cache, shared = DynamicCache(config=self.lm.model.config), self._shared(rows)
        batch = self._batch([row[shared:] for row in rows])
        mask = batch.attention_mask
        if shared:
            start = self._batch([rows[0][:shared]])
            self._hidden_states(start.input_ids, start.attention_mask, cache)
            cache.batch_repeat_interleave(len(rows))
            mask = torch.cat([mask.new_ones(len(rows), shared), mask], dim=1)
        states = self._hidden_states(batch.input_ids, mask, cache)[:, -1].float()
        return Prefill(cache, mask, states)

    @torch.no_grad()
    def extend(self, prefill: Prefill, tokens: Tensor) -> None:
        """Read one more token, of tokens (rows,), in each row of a prefill."""
        prefill.mask = F.pad(prefill.mask, (0, 1), value=1)
        hidden = self._hidden_states(tokens[:, None], prefill.mask, prefill.cache)
        prefill.states = hidden[:, -1].float()

    @torch.no_grad()
    def last_hidden_states_after(self, prefill: Prefill, continuations: Tensor) -> Tensor:
        """Return the head's input at the last token of each row followed by each continuation.

        Args:
            prefill: rows that have been read; it is not changed.
            continuations: (n, width), token ids.

        Returns:
            (n, rows, hidden) in fp32.
        """
        cache, mask = copy.deepcopy(prefill.cache), prefill.mask
        rows, count = len(mask), len(continuations)
        cache.batch_repeat_interleave(count)
        ids = continuations.repeat(rows, 1)
        mask = torch.cat([mask.repeat_interleave(count, dim=0), torch.ones_like(ids)], dim=1)
        states = self._hidden_states(ids, mask, cache)[:, -1].float()
        return states.reshape(rows, count, -1).transpose(0, 1)

    @torch.no_grad()
    def log_probs(self, inputs: Tensor) -> Tensor:
        """Return the base model's next-token log-probabilities for inputs (n, hidden) of the head.

        Returns:
            (n, vocabulary) in fp32.
        """
        return F.log_softmax(self.logits(inputs), -1)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits for inputs (n, hidden) of the head; gradients flow through it.

        Returns:
            (n, vocabulary) in fp32.
        """
        output: Tensor = self.head.forward(inputs.to(self.lm.model.dtype))
        return output.float() * self.logit_scale

    def _shared(self, rows: Sequence[Sequence[int]]) -> int:
        """Return how many tokens all rows begin with, leaving one to each; 0 if too few.

        The rows' rests are padded behind them, which only position ids tell from other distances.
        """
        if len(rows) < 2 or "position_ids" not in self._arguments:
            return 0
        tokens = [tuple(row) for row in rows]
        first, last, most = min(tokens), max(tokens), min(map(len, tokens)) - 1
        shared = next((place for place in range(most) if first[place] != last[place]), most)
        return shared if shared >= SHARED_TOKENS else 0

    def _batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        return self.lm.batch([Row(tuple(ids), len(ids)) for ids in rows])

    def _hidden_states(self, ids: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Run the base model's body on tokens (rows, width) that follow those in the cache.

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
            arguments["past_key_values"] = cache
        if "position_ids" in self._arguments:
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self._bypass.temporarily(True):
            return tensor_of(self.body, self.body(**arguments))
