"""`PromptStates`: keys and values of prompts, computed once for all steps of WISE's training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.methods.association.wise.patch import SideMemory


@dataclass(frozen=True)
class PromptStates:
    """What the router sees of n prompts.

    Attributes:
        keys: (n, width, d_in).
        values: (n, width, d_out).
        mask: (n, width), the prompts' tokens.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor

    @classmethod
    def cat(cls, parts: Sequence[PromptStates]) -> PromptStates:
        """Concatenate several, padded on the left to one width."""
        width = max(part.mask.shape[1] for part in parts)

        def padded(tensor: Tensor) -> Tensor:
            missing = width - tensor.shape[1]
            padding = (0,) * (2 * (tensor.dim() - 2)) + (missing, 0)
            return F.pad(tensor, padding) if missing else tensor

        return cls(
            torch.cat([padded(part.keys) for part in parts]),
            torch.cat([padded(part.values) for part in parts]),
            torch.cat([padded(part.mask) for part in parts]),
        )

    @classmethod
    def from_joined(cls, states: Tensor, d_in: int) -> PromptStates:
        """Split what `joined` returned: one token of each prompt, (n, d_in + d_out)."""
        keys, values = states[:, None, :d_in], states[:, None, d_in:]
        return cls(keys, values, torch.ones(len(states), 1, dtype=torch.bool, device=states.device))

    def joined(self) -> Tensor:
        """Return key and value of each prompt's last token in one tensor, (n, d_in + d_out)."""
        return torch.cat([self.keys[:, -1], self.values[:, -1]], dim=-1)

    def sample(self, count: int, draw: random.Random) -> PromptStates:
        """Draw at most `count` of them."""
        n = self.mask.shape[0]
        if n <= count:
            return self
        rows = torch.tensor(sorted(draw.sample(range(n), count)), device=self.mask.device)
        return PromptStates(self.keys[rows], self.values[rows], self.mask[rows])

    def split(self, sizes: list[int]) -> list[PromptStates]:
        """Split into parts of these numbers of prompts."""
        parts = (torch.split(tensor, sizes) for tensor in (self.keys, self.values, self.mask))
        return [PromptStates(*part) for part in zip(*parts, strict=True)]

    def activation(self, memory: SideMemory, delta: Tensor) -> Tensor:
        """Return Delta(x) of each prompt, (n,)."""
        return memory.activation(delta, self.keys, self.values, self.mask)

    def output(self, delta: Tensor) -> Tensor:
        """Return the side memory's values, (n, width, d_out)."""
        return self.values + F.linear(self.keys, delta)
