"""`BM25`: texts bear on a prompt by the words they share with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LM
from errata.retrieval.base import RetrievalConfig, Retriever, different
from errata.storage import state
from errata.words.parts import words


class BM25(Retriever):
    """By the words that a text and a prompt share, the rarer the more (Robertson and Zaragoza,
    2009; library bm25s).

    Shared words tell less of what is asked than states do: a prompt may find what is about the same
    thing, or asks the same of another. So the bound is on pairs: of the pairs of the model's own
    prompts that are not one question, `false_route` score more. Its own prompts are indexed with
    the texts, so that words it uses all the time count little from the first text on.
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
        self._onward: Tensor = torch.zeros(0, dtype=torch.long)
        self._index: Any = None

    @property
    def calibrated(self) -> bool:
        """Whether the background has been looked at."""
        return bool(self._prompts)

    def calibrate(self) -> None:
        """Make the background. The bound follows when the index does."""
        if not self.calibrated:
            self._prompts, self._onward = self._background()

    def read(self, texts: Sequence[str]) -> None:
        """Search these from now on; they are indexed when they are first searched."""
        self.texts, self._index = list(texts), None

    def scores(self, prompts: Sequence[str]) -> Tensor:
        """BM25 scores, (prompts, texts); 0 where no word is shared."""
        if self._index is None:
            self.calibrate()
            index = self._library.BM25()
            index.index(
                [words(text) or [""] for text in [*self._prompts, *self.texts]], show_progress=False
            )
            pairs = self._all_scores(index, self._prompts)[:, : len(self._prompts)][
                different(self._onward)
            ]
            place = max(1, math.ceil((1 - self.config.false_route) * len(pairs)))
            bound = pairs.kthvalue(place).values.item() if len(pairs) else 0.0
            self.min_score = bound if self.config.min_score is None else self.config.min_score
            self._index = index  # whole before another thread sees it
        return self._all_scores(self._index, prompts)[:, len(self._prompts) :]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The background's next tokens; its prompts."""
        return {"onward": self._onward} if self.calibrated else {}, {"background": self._prompts}

    def load_state(
        self, texts: Sequence[str], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Be what `state` described."""
        self._prompts = state.texts(values, "background")
        if self._prompts:
            self._onward = state.tensor(tensors, "onward", (len(self._prompts),), "whole")
        self.texts, self._index = list(texts), None

    def _all_scores(self, index: Any, prompts: Sequence[str]) -> Tensor:
        found = torch.zeros(len(prompts), len(self._prompts) + len(self.texts))
        for row, prompt in zip(found, prompts, strict=True):
            if known := [word for word in words(prompt) if word in index.vocab_dict]:
                row += torch.from_numpy(index.get_scores(known))
        return found
