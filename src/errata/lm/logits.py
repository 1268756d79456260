"""Logits at some positions only; elsewhere the head, most of a small model's work, does not run."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

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
    if "logits_to_keep" not in inspect.signature(lm.model.forward).parameters:
        whole: Tensor = lm.run(batch, use_cache=False).logits
        return whole[rows, columns].float()
    kept, places = torch.unique(columns, return_inverse=True)
    logits: Tensor = lm.run(batch, use_cache=False, logits_to_keep=kept).logits
    return logits[rows, places].float()


def last_logits(lm: LM, batch: Batch) -> Tensor:
    """Return logits (batch, vocabulary), fp32, at the last column of a left-padded batch."""
    count, width = batch.input_ids.shape
    rows = torch.arange(count, device=batch.input_ids.device)
    return logits_at(lm, batch, rows, torch.full_like(rows, width - 1))
