"""`SuffixTail`: a tail that runs only the columns from the first one that changes.

A method that changes the value matrix's output at one token and behind it changes nothing before:
there the keys and values of every block's attention are constant, and a key-value cache holds them.
In a chat model most of a prompt is its template, so an optimisation step becomes several times
cheaper.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from errata.lm.cache import cache_in
from errata.lm.encoding import Batch
from errata.lm.lm import LM
from errata.lm.tail import Tail


class SuffixTail(Tail):
    """The model above the value matrix of `layer`, for a batch's columns from `first`.

    Its keys, values, rows and columns are those of `batch`, which has only these columns.

    Args:
        lm: the model, with changes of weights at most.
        layer: the edited block.
        batch: rows padded on the left.
        first: the first column whose value may change.
        cache: `cache_of` of the same batch and columns; None: it is made.

    Attributes:
        batch: the columns from `first`; all, where the model keeps no cache.
        first: the first of them.
    """

    def __init__(self, lm: LM, layer: int, batch: Batch, first: int, cache: Any = None) -> None:
        self._whole = batch
        self._cache = cache_of(lm, batch, first) if cache is None else cache
        self.first = 0 if self._cache is None else first
        self.batch = columns_from(batch, self.first)
        super().__init__(lm, layer, self.batch)

    def _forward(self) -> Any:
        if self._cache is None:
            return super()._forward()
        whole, options = self._whole, {self._lm.cache_name: copy.deepcopy(self._cache)}
        if self._lm.takes_position_ids:
            options["position_ids"] = whole.position_ids[:, self.first :]
        return self._lm.model(
            input_ids=self.batch.input_ids,
            attention_mask=whole.attention_mask,
            use_cache=True,
            **options,
        )


def columns_from(batch: Batch, first: int) -> Batch:
    """Return a batch's columns from `first`."""
    return Batch(
        batch.input_ids[:, first:],
        batch.attention_mask[:, first:],
        batch.prompt_mask[:, first:],
        batch.target_mask[:, first:],
        batch.ending_mask[:, first:],
    )


@torch.no_grad()
def cache_of(lm: LM, batch: Batch, first: int) -> Any:
    """Return the key-value cache of the columns before `first`; None where there is none."""
    if not first:
        return None
    options = {"position_ids": batch.position_ids[:, :first]} if lm.takes_position_ids else {}
    body = lm.architecture.body_module(lm.model)
    output = body(
        input_ids=batch.input_ids[:, :first],
        attention_mask=batch.attention_mask[:, :first],
        use_cache=True,
        **options,
    )
    return cache_in(output)
