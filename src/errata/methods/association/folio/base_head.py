"""`BaseHead`: the inputs of the base model's output head, and the predictions it makes from them.

`Calibrator` and `Leaves` use it. It may be called inside a forward pass of the edited model:
`bypass` tells the patch to leave the calls of this thread alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from errata.errors import ArchitectureError
from errata.lm import LM
from errata.lm.encoding import Batch, Row
from errata.lm.hooks import PerThread, capture_output, tensor_of

Prefill = tuple[Cache, Tensor]
"""A key-value cache, and the mask (rows, width) of the tokens in it that are no padding."""


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

    @torch.no_grad()
    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the model with whatever is installed on it.

        Returns:
            The head's inputs (batch, width, hidden) and the logits (batch, width, vocabulary).
        """
        with capture_output(self.body) as inputs:
            logits: Tensor = self.lm.run(batch).logits
        return inputs[0], logits

    @torch.no_grad()
    def fit_logit_scale(self, texts: Sequence[str]) -> None:
        """Set `logit_scale` by least squares at the last tokens of texts.

        Raises:
            ArchitectureError: the model's logits are no multiple of its head's output.
        """
        inputs, logits = self.run(self.lm.prompt_batch(texts))
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
        batch = self._batch(rows)
        return self._hidden_states(batch.input_ids, batch.attention_mask)[:, -1]

    @torch.no_grad()
    def prefill(self, rows: Sequence[Sequence[int]]) -> Prefill:
        """Read rows of tokens into a cache, which `last_hidden_states_after` continues from."""
        batch, cache = self._batch(rows), DynamicCache(config=self.lm.model.config)
        self._hidden_states(batch.input_ids, batch.attention_mask, cache)
        return cache, batch.attention_mask

    @torch.no_grad()
    def last_hidden_states_after(self, prefill: Prefill, continuations: Tensor) -> Tensor:
        """Return the head's input at the last token of each row followed by each continuation.

        Args:
            prefill: rows that `prefill` has read; it is not changed.
            continuations: (n, width), token ids.

        Returns:
            (n, rows, hidden).
        """
        cache, mask = copy.deepcopy(prefill[0]), prefill[1]
        rows, count = len(mask), len(continuations)
        cache.batch_repeat_interleave(count)
        ids = continuations.repeat(rows, 1)
        mask = torch.cat([mask.repeat_interleave(count, dim=0), torch.ones_like(ids)], dim=1)
        return self._hidden_states(ids, mask, cache)[:, -1].reshape(rows, count, -1).transpose(0, 1)

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
