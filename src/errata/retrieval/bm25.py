"""`BM25`: texts are relevant to a prompt by the words that they share with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LM
from errata.retrieval.base import RetrievalConfig, Retriever, different_questions
from errata.storage import state
from errata.words.parts import words


class BM25(Retriever):
    """Scores shared words, rare ones higher (Robertson and Zaragoza, 2009; library bm25s).

    Shared words say less about the question than hidden states do: a prompt may find a text about
    the same thing, or one that asks the same about another. So the minimum score is calibrated on
    pairs: of the pairs of background prompts that are different questions, `false_route` score
    higher. The background prompts are indexed with the texts, so that the model's common words
    weigh little even when there are few texts.

    Raises:
        ConfigError: the library is not installed.
    """

    def __init__(self, lm: LM, config: RetrievalConfig) -> None:
        super().__init__(lm, config)
        try:
            self._library = import_module("bm25s")
        except ImportError as error:
            raise ConfigError(
                "retriever=bm25 needs a library: pip install 'errata[retrieval]'."
            ) from error
        self._prompts: list[str] = []
        self._next_tokens: Tensor = torch.zeros(0, dtype=torch.long)
        self._index: Any = None

    @property
    def calibrated(self) -> bool:
        """Whether there are background prompts."""
        return bool(self._prompts)

    def calibrate(self) -> None:
        """Generate the background prompts; `scores` derives the minimum score when it indexes."""
        if not self.calibrated:
            layer = self.lm.architecture.default_layer()
            self._prompts, self._next_tokens, _ = self._background(layer)

    def index(self, texts: Sequence[str]) -> None:
        """Search these texts from now on; they are indexed by the first search."""
        self.texts, self._index = list(texts), None

    def scores(self, prompts: Sequence[str]) -> Tensor:
        """Return BM25 scores, (prompts, texts) in fp32; 0 where no word is shared."""
        if self._index is None:
            self.calibrate()
            index = self._library.BM25()
            corpus = [words(text) or [""] for text in [*self._prompts, *self.texts]]
            index.index(corpus, show_progress=False)
            own = self._all_scores(index, self._prompts)[:, : len(self._prompts)]
            pairs = own[different_questions(self._next_tokens)]
            rank = max(1, math.ceil((1 - self.config.false_route) * len(pairs)))
            bound = pairs.kthvalue(rank).values.item() if len(pairs) else 0.0
            self.min_score = bound if self.config.min_score is None else self.config.min_score
            self._index = index  # last: another thread must not see it half made
        return self._all_scores(self._index, prompts)[:, len(self._prompts) :]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the background prompts and the model's next token for each."""
        tensors = {"onward": self._next_tokens} if self.calibrated else {}
        return tensors, {"background": self._prompts}

    def load_state(
        self, texts: Sequence[str], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Restore from `state()` and the texts."""
        self._prompts = state.texts(values, "background")
        if self._prompts:
            self._next_tokens = state.tensor(tensors, "onward", (len(self._prompts),), "whole")
        self.index(texts)

    def _all_scores(self, index: Any, prompts: Sequence[str]) -> Tensor:
        """Return scores of the background prompts and then of the texts, (prompts, all)."""
        scores = torch.zeros(len(prompts), len(self._prompts) + len(self.texts))
        for row, prompt in zip(scores, prompts, strict=True):
            if known := [word for word in words(prompt) if word in index.vocab_dict]:
                row += torch.from_numpy(index.get_scores(known))
        return scores
