"""`BaseHead`: the base model asked what its head reads and says, from within a pass of the edited
one too.
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


class BaseHead:
    """What lies between a model's last block and its logits.

    Args:
        lm: the base model.

    Attributes:
        body, head: its modules; what the one says the other reads.
        logit_scale: the model's logits are the head's outputs times this, as far as they are a
            multiple of them.
        asking: whether this thread asks the base model, so that patches keep still.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self.body, self.head = (
            lm.architecture.body_module(lm.model),
            lm.architecture.head_module(lm.model),
        )
        self.logit_scale = 1.0
        self._asking = PerThread(False)
        self._names = inspect.signature(self.body.forward).parameters

    @property
    def asking(self) -> bool:
        """Whether this thread asks the base model."""
        return self._asking.get()

    @torch.no_grad()
    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(what the head reads (batch, width, hidden), the model's logits): of the model as it is."""
        with capture_output(self.body) as seen:
            logits: Tensor = self.lm.run(batch).logits
        return seen[0], logits

    @torch.no_grad()
    def measure(self, texts: Sequence[str]) -> None:
        """Find the logit_scale, on texts.

        Raises:
            ArchitectureError: the model's logits do not follow from what its head says.
        """
        read, logits = self.read(self.lm.prompt_batch(texts))
        said, logits = self.head.forward(read[:, -1]).float(), logits[:, -1].float()
        times = float((said * logits).sum() / said.square().sum().clamp(min=1e-9))
        if not bool((said.argmax(-1) == logits.argmax(-1)).float().mean() > 0.9) or times <= 0:
            raise ArchitectureError(
                "this model does something between its body and its head; folio cannot write there."
            )
        self.logit_scale = times

    @torch.no_grad()
    def tips(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """What the head of the base model reads at the last of the given tokens, (rows, hidden)."""
        batch = self.lm.batch([Row(tuple(ids), len(ids)) for ids in rows])
        return self._states(batch.input_ids, batch.attention_mask)[:, -1]

    @torch.no_grad()
    def begin(self, rows: Sequence[Sequence[int]]) -> tuple[Cache, Tensor]:
        """Read the given tokens once, so that much can be asked behind them: what `tips_behind`
        takes.
        """
        batch, cache = (
            self.lm.batch([Row(tuple(ids), len(ids)) for ids in rows]),
            DynamicCache(config=self.lm.model.config),
        )
        self._states(batch.input_ids, batch.attention_mask, cache)
        return cache, batch.attention_mask

    @torch.no_grad()
    def tips_behind(self, begun: tuple[Cache, Tensor], ends: Tensor) -> Tensor:
        """What the head reads at the last of the tokens ends (m, width) behind each of the rows
        begun, (m, rows, hidden).
        """
        cache, seen = copy.deepcopy(begun[0]), begun[1]
        rows, many = len(seen), len(ends)
        cache.batch_repeat_interleave(many)
        ids = ends.repeat(rows, 1)
        mask = torch.cat([seen.repeat_interleave(many, dim=0), torch.ones_like(ids)], dim=1)
        return self._states(ids, mask, cache)[:, -1].reshape(rows, many, -1).transpose(0, 1)

    def _states(self, ids: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """What the head reads, (rows, width, hidden), of tokens ids (rows, width) behind what the
        cache holds.
        """
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "use_cache": cache is not None,
        }
        if cache is not None:
            given["past_key_values"] = cache
        if "position_ids" in self._names:
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self._asking.temporarily(True):
            return tensor_of(self.body, self.body(**given))

    @torch.no_grad()
    def expected(self, keys: Tensor) -> Tensor:
        """What the base model expects next, log-probabilities (n, vocabulary) in fp32, of the
        head's inputs (n, hidden).
        """
        return F.log_softmax(self.logits(keys), -1)

    def logits(self, keys: Tensor) -> Tensor:
        """Logits (n, vocabulary) in fp32 of inputs (n, hidden) of the head, through which gradients
        flow.
        """
        said: Tensor = self.head.forward(keys.to(self.lm.model.dtype))
        return said.float() * self.logit_scale
