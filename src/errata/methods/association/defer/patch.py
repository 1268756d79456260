"""`Deferral`: a small model beside one linear module, and a gate that says which of the two speaks.

Both look at the last token of the prompt and at nothing else. Where the gate opens, what the small
model says of that token replaces the module's output at every token of the sequence, the answer's
tokens included.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from errata.patches.routed import ForwardState, RoutedModule, last_token


class Speaker(nn.Module):
    """A gate g(h) = sigmoid(w^T h + b) and what to say, o(h) = U h + c; drawn from a seed, as
    `nn.Linear` draws.

    Args:
        d_in: the size of h.
        d_out: the size of o(h).
    """

    def __init__(self, d_in: int, d_out: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gate = nn.Linear(d_in, 1)
            self.value = nn.Linear(d_in, d_out)

    def forward(self, query: Tensor) -> Tensor:
        """(batch, 1 + d_out) of query (batch, d_in): g(h), then o(h)."""
        query = query.to(self.gate.weight)
        return torch.cat([self.gate(query).sigmoid(), self.value(query)], -1)


class Deferral(RoutedModule):
    """A `Speaker` that replaces a module's output where its gate says at least `threshold`.

    Args:
        path: the module's full dotted name, see `Architecture.value_path`.
        threshold: from 0 to 1.
    """

    def __init__(self, path: str, threshold: float) -> None:
        super().__init__(path)
        self.threshold = threshold
        self.speaker: Speaker | None = None

    @property
    def empty(self) -> bool:
        """Nobody to defer to."""
        return self.speaker is None

    @torch.no_grad()
    def _decide(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """What the speaker says of the last token of each prompt: the gate, then the value."""
        if self.speaker is None:
            return values.new_zeros(keys.shape[0], 1 + values.shape[-1])
        rows = torch.arange(keys.shape[0], device=keys.device)
        said: Tensor = self.speaker(keys[rows, last_token(mask)])
        return said

    def _answer(self, keys: Tensor, output: Tensor, now: ForwardState) -> Tensor | None:
        if now.route is None or not bool((opened := now.route[:, 0] >= self.threshold).any()):
            return None
        said = now.route[:, 1:].to(output)[:, None]
        return torch.where(
            opened[:, None, None].to(output.device), said, output.reshape(*now.size, -1)
        ).reshape(output.shape)
