"""What MemoryLLM trains beside a frozen model: it writes hidden states, and it reads them.

Low-rank adapters on every linear module of the blocks, one set for writing and one for reading; at
each block one vector in front of all others (`sink`, the published `bos_embedding`); one vector
that marks what is being written (`mark`, the published `new_memory_positional_emb`); and, where
dropped vectors can be recalled, a retriever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import Batch, Row
from errata.lm.hooks import capture_input
from errata.methods.association.memoryllm.config import MemoryLlmConfig
from errata.methods.association.memoryllm.patch import MemoryTokens, last_states
from errata.methods.association.memoryllm.pool import Pool
from errata.methods.association.memoryllm.retriever import Retriever
from errata.patches.adapter import low_rank
from errata.storage import state

BATCH = 32
"""Texts that are written side by side, at most, to fill a memory."""


class MemoryNetwork:
    """Reads and writes a memory; before training it does so as the model itself would.

    Args:
        lm: the base model, without patches.
        config: the method's settings.

    Attributes:
        parameters: the parameters to train, by the names they are saved under.
    """

    def __init__(self, lm: LM, config: MemoryLlmConfig) -> None:
        self.lm, self.config = lm, config
        architecture = lm.architecture
        depth, hidden = architecture.n_layers, architecture.hidden_size
        paths = [
            path for layer in range(depth) for path in architecture.linear_paths(lm.model, layer)
        ]
        self.writer, self.reader = (
            low_rank(lm, paths, config.rank, config.alpha, "plain", config.seed + i)
            for i in range(2)
        )
        self.sink = nn.Parameter(self._first_states()[:, None])
        self.mark = nn.Parameter(torch.zeros(hidden, device=lm.device))
        self.retriever: Retriever | None = None
        if config.recalled_tokens:
            retriever = Retriever(depth, hidden, config.retriever_width, config.seed)
            self.retriever = retriever.to(lm.device)
        self.parameters: dict[str, Any] = {"sink": self.sink, "mark": self.mark}
        for name, adapters in (("writer", self.writer), ("reader", self.reader)):
            self.parameters |= {f"{name}.{key}": x for key, x in adapters.parameters.items()}
        if self.retriever is not None:
            named = self.retriever.named_parameters()
            self.parameters |= {f"retriever.{key}": x for key, x in named}
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def _first_states(self) -> Tensor:
        """Return what each block reads of the first token of any text, (layers, hidden)."""
        lm = self.lm
        first = lm.tokenizer.bos_token_id
        ids = (int(lm.pad_id if first is None else first),)
        with contextlib.ExitStack() as hooks:
            inputs = [
                hooks.enter_context(capture_input(lm.architecture.block(lm.model, layer)))
                for layer in range(lm.architecture.n_layers)
            ]
            lm.run(lm.batch([Row(ids, 1)]), keep=1, use_cache=False)
        return torch.stack([each[0][0, 0].float().to(lm.device) for each in inputs])

    def write(self, batch: Batch, latest: Tensor) -> Tensor:
        """Return the vectors that a text becomes, (layers, batch, K, hidden).

        Args:
            batch: the texts, padded on the left.
            latest: (layers, K, hidden), the latest vectors of the memory, which are read with them;
                (layers, 0, hidden) for none.
        """
        count = self.config.new_tokens
        memory = torch.cat([self.sink, latest.to(self.sink)], dim=1)
        patch = MemoryTokens(memory, self.writer, mark=self.mark, marked=count)
        return last_states(self.lm, patch, batch, count, self.config.written == "inputs")

    @torch.no_grad()
    def written(self, row: Row, pool: Pool) -> Tensor:
        """Return the vectors that a text becomes in a memory, (layers, K, hidden)."""
        latest = pool.vectors[:, -self.config.new_tokens :]
        return self.write(self.lm.batch([row]), latest)[:, 0]

    @torch.no_grad()
    def filled(self) -> Pool:
        """Return a memory full of self-generated texts, each written by itself."""
        lm, config = self.lm, self.config
        count, size = config.new_tokens, config.memory_tokens
        texts = background_texts(lm, -(-size // count), 2 * count, config.seed, count)
        rows = [Row(tuple(ids), len(ids)) for ids in map(lm.encode_prompt, texts)]
        parts = [
            self.write(lm.batch(rows[first : first + BATCH]), self.sink[:, :0]).flatten(1, 2)
            for first in range(0, len(rows), BATCH)
        ]
        vectors = torch.cat(parts, dim=1)[:, -size:]
        return Pool(vectors.cpu(), vectors.cpu()[:, :0])

    def tokens(self, vectors: Tensor, dropped: Tensor | None = None) -> MemoryTokens:
        """Return the memory as a patch: the sink, what is recalled, and the vectors.

        Args:
            vectors: (layers, N, hidden).
            dropped: (layers, M, hidden), from which the retriever may recall.
        """
        memory = torch.cat([self.sink, vectors.to(self.sink)], dim=1)
        if self.retriever is None or dropped is None or not dropped.shape[1]:
            return MemoryTokens(memory, self.reader)
        count = min(self.config.recalled_tokens, dropped.shape[1])
        keys = self.retriever.keys(dropped)
        recall = partial(self.retriever.recalled, dropped, keys, count)
        return MemoryTokens(memory, self.reader, count, recall)

    @contextlib.contextmanager
    def trainable(self) -> Iterator[None]:
        """Let gradients flow into the parameters during a `with` block."""
        try:
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)
                parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return all parameters, on the CPU."""
        return {name: each.detach().cpu().clone() for name, each in self.parameters.items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore from `state()`.

        Raises:
            KeyError, ValueError: a tensor is missing or of the wrong shape.
        """
        state.copy_into(self.parameters, tensors)
