"""Logits at some positions only; elsewhere the head, most of a small model's work, does not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from errata.lm.cache import cache_in
from errata.lm.encoding import Batch
from errata.lm.lm import LM


def logits_at(lm: LM, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
    """Return logits (n, vocabulary), fp32, at positions of a batch; gradients flow into patches.

    The head runs on the columns that any row needs, where the model can leave columns out.

    Args:
        lm: the model with the patch that it carries.
        batch: padded rows.
        rows, columns: (n,) each.
    """
    if not lm.leaves_out_logits:
        whole: Tensor = lm.run(batch, use_cache=False).logits
        return whole[rows, columns].float()
    kept, places = torch.unique(columns, return_inverse=True)
    logits: Tensor = lm.run(batch, use_cache=False, logits_to_keep=kept).logits
    return logits[rows, places].float()


def next_logits(lm: LM, ids: Sequence[int], cache: Any = None) -> tuple[Tensor, Any]:
    """Return logits (vocabulary,) behind tokens, and the cache that has them; for the next call.

    Args:
        lm: the model.
        ids: the tokens that are not in the cache yet.
        cache: what the last call returned; None: there are no earlier tokens.
    """
    options = {"logits_to_keep": 1} if lm.leaves_out_logits else {}
    tokens = torch.tensor([list(ids)], device=lm.device)
    output = lm.model(input_ids=tokens, use_cache=True, **{lm.cache_name: cache}, **options)
    return output.logits[0, -1].float(), cache_in(output)
