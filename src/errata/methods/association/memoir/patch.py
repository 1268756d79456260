"""`ResidualMemory`: a second matrix W_m beside one value matrix, of which each edit has some
columns.

Which columns a prompt has is told by its features alone (TopHash). A prompt whose columns are much
like those of an edit is answered with that edit's columns, by v = W k + b + W_m (M o k); every
other prompt by the base model. It is decided once per sequence (see `routed.py`). What is learned,
and how, is the methods' affair.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.lm import LM
from errata.lm.weights import read_weight
from errata.patches.routed import ForwardState, RoutedModule, last_token
from errata.retrieval.mask_index import MaskIndex

POOLS = ("mean", "last")


class ResidualMemory(RoutedModule):
    """One shared memory behind the masks of the edits in it.

    Args:
        lm: the base model; nothing is installed on it yet.
        layer: the edited block.
        columns: k, how many columns a mask has.
        overlap: tau, the share of a mask's columns that a prompt must have in common with it.
        order: pi, a permutation (d_in,): coordinate i of the feature stands for column order[i].
        pool: over the prompt's tokens: `mean` or `last`.

    Attributes:
        memory: W_m (d_out, d_in), fp32.
        centre: (d_in,), the mean feature of background text.
        index: the masks, one per edit.

    Reference: MEMOIR, arXiv 2506.07899.
    """

    def __init__(
        self, lm: LM, layer: int, columns: int, overlap: float, order: Tensor, pool: str = "mean"
    ) -> None:
        super().__init__(lm.architecture.value_path(layer))
        architecture = lm.architecture
        device = read_weight(architecture.value_module(lm.model, layer)).device
        self.columns = columns
        self.overlap = overlap
        self.pool = pool
        self.order = order.to(device)
        self.memory = torch.zeros(architecture.d_out, architecture.d_in, device=device)
        self.centre = torch.zeros(architecture.d_in, device=device)
        self.index = MaskIndex(architecture.d_in)

    @property
    def empty(self) -> bool:
        """No edit's mask is stored."""
        return len(self.index) == 0

    def clear(self) -> None:
        """Forget what was learned; the centre stays."""
        self.memory = torch.zeros_like(self.memory)
        self.index = MaskIndex(self.index.width)

    def masks(self, keys: Tensor, mask: Tensor) -> Tensor:
        """TopHash of prompts: (batch, d_in) bool with `columns` of each row True.

        The coordinates in which a prompt differs most from background text, either way, are its
        own; `order` scatters them, so that columns are not those whose keys are large. Of equals
        the first counts.

        Args:
            keys: (batch, width, d_in).
            mask: (batch, width), the prompt's tokens.
        """
        most = (
            (feature(keys, mask, self.pool) - self.centre)
            .abs()
            .argsort(dim=-1, descending=True, stable=True)
        )
        found = torch.zeros(keys.shape[0], keys.shape[-1], dtype=torch.bool, device=keys.device)
        return found.scatter_(-1, self.order[most[:, : self.columns]], True)

    def match(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """(overlap |M and M_j| / k, place j) of the edit j nearest to each of masks (batch, d_in);
        both (batch,).
        """
        distances, places = self.index.nearest(masks)
        return 1 - distances / (2 * self.columns), places  # all masks have `columns` bits

    # installed

    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """The columns to answer with, (batch, d_in) bool: those of the edit, or none."""
        overlaps, places = self.match(self.masks(keys, mask))
        return (self.index.masks(places) & (overlaps >= self.overlap)[:, None]).to(keys.device)

    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        if now.route is None or not bool((mine := now.route.any(-1)).any()):
            return None
        rows_in, rows_out = keys.reshape(*now.size, -1)[mine], output.reshape(*now.size, -1).clone()
        added = F.linear(rows_in.to(self.memory.dtype) * now.route[mine][:, None], self.memory)
        rows_out[mine] = (rows_out[mine].to(added.dtype) + added).to(output.dtype)
        return rows_out.reshape(output.shape)


def feature(keys: Tensor, mask: Tensor, pool: str) -> Tensor:
    """One vector per prompt: keys (batch, width, d_in) over the tokens under mask (batch, width):
    (batch, d_in), fp32.
    """
    if pool == "last":
        return keys[torch.arange(keys.shape[0], device=keys.device), last_token(mask)].float()
    return (keys.float() * mask[..., None]).sum(1) / mask.sum(-1, keepdim=True).clamp(min=1)
