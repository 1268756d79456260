"""`ResidualMemory`: a second matrix W_m beside one value matrix, some columns of it for each edit.

A prompt's columns follow from its features alone (TopHash). If they overlap enough with a stored
edit's, that edit's columns answer, v = W k + b + W_m (M o k); else the base model does. This is
decided once per sequence (see `patches/routed.py`). W_m is trained in `method.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.lm import LM
from errata.lm.weights import weight_device
from errata.patches.routed import ForwardState, RoutedModule, last_token
from errata.retrieval.mask_index import MaskIndex

Pool = Literal["mean", "last"]
"""Which of a prompt's tokens its feature is taken from: all, or the last."""


class ResidualMemory(RoutedModule):
    """One shared memory, and a mask over its columns for each edit.

    Args:
        lm: the base model; nothing is installed on it yet.
        layer: the edited block.
        columns: k, how many columns a mask has.
        overlap: tau, the share of an edit's columns that a prompt must have too.
        order: pi, a permutation (d_in,): coordinate i of the feature stands for column order[i].
        pool: over the prompt's tokens.

    Attributes:
        memory: W_m (d_out, d_in), fp32.
        centre: (d_in,), the mean feature of background text.
        index: the masks, one per edit.

    Reference: MEMOIR, arXiv 2506.07899.
    """

    nothing = False

    def __init__(
        self, lm: LM, layer: int, columns: int, overlap: float, order: Tensor, pool: Pool = "mean"
    ) -> None:
        super().__init__(lm.architecture.value_path(layer))
        architecture = lm.architecture
        device = weight_device(architecture.value_module(lm.model, layer))
        self.columns = columns
        self.overlap = overlap
        self.pool = pool
        self.order = order.to(device)
        self.memory = torch.zeros(architecture.d_out, architecture.d_in, device=device)
        self.centre = torch.zeros(architecture.d_in, device=device)
        self.index = MaskIndex(architecture.d_in)

    @property
    def empty(self) -> bool:
        """Whether no edit's mask is stored."""
        return len(self.index) == 0

    def clear(self) -> None:
        """Forget all edits; the centre stays."""
        self.memory = torch.zeros_like(self.memory)
        self.index = MaskIndex(self.index.width)

    def masks(self, keys: Tensor, mask: Tensor) -> Tensor:
        """Return the TopHash of prompts, (batch, d_in) bool with `columns` of each row True.

        They are the coordinates in which a prompt's feature differs most from background text,
        either way, permuted by `order`, so that they do not gather where keys are large. Of equal
        coordinates the first counts.

        Args:
            keys: (batch, width, d_in).
            mask: (batch, width), the prompt's tokens.
        """
        difference = (feature(keys, mask, self.pool) - self.centre).abs()
        largest = difference.argsort(dim=-1, descending=True, stable=True)[:, : self.columns]
        return torch.zeros_like(difference, dtype=torch.bool).scatter_(
            -1, self.order[largest], True
        )

    def match(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return (overlap, place), both (batch,), of the edit nearest to each mask (batch, d_in).

        The overlap with mask j is |M and M_j| / k.
        """
        distances, places = self.index.nearest(masks)
        return 1 - distances / (2 * self.columns), places  # all masks have `columns` bits

    # installed

    def answered(self, route: Tensor) -> Tensor:
        """Return the rows that an edit's columns answer, (batch,) bool."""
        return route.any(-1)

    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return the columns that answer, (batch, d_in) bool: the matched edit's, or none."""
        overlaps, places = self.match(self.masks(keys, mask))
        return (self.index.masks(places) & (overlaps >= self.overlap)[:, None]).to(keys.device)

    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        if now.route is None or not bool((matched := now.route.any(-1)).any()):
            return None
        inputs = keys.reshape(*now.size, -1)[matched].to(self.memory.dtype)
        added = F.linear(inputs * now.route[matched][:, None], self.memory)
        outputs = output.reshape(*now.size, -1).clone()
        outputs[matched] = (outputs[matched].to(added.dtype) + added).to(output.dtype)
        return outputs.reshape(output.shape)


def feature(keys: Tensor, mask: Tensor, pool: Pool) -> Tensor:
    """Return one vector per prompt, (batch, d_in) in fp32: the mean of its keys, or the last one.

    Args:
        keys: (batch, width, d_in).
        mask: (batch, width), the prompt's tokens.
    """
    if pool == "last":
        return keys[torch.arange(keys.shape[0], device=keys.device), last_token(mask)].float()
    return (keys.float() * mask[..., None]).sum(1) / mask.sum(-1, keepdim=True).clamp(min=1)
