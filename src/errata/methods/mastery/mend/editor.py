"""MEND's editor: the network that turns what backpropagation left at a value matrix into a better
change of it.

The gradient of a matrix is a sum over tokens, sum_i d_i u_i^T, of its inputs u and of the gradients
d of its outputs. The editor reads each pair (u_i, d_i), normalised, and answers with another:
DeltaW = -alpha_m sum_i d~_i u~_i^T. It knows nothing of models, prompts or losses. Mitchell et al.,
arXiv 2110.11309, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from errata.storage import state

Flow = tuple[Tensor, Tensor]
"""What flowed through one matrix: inputs u (tokens, d_in) and gradients d of the outputs (tokens,
d_out).
"""


class LowRank(nn.Module):
    """z + ReLU(scale_m * (U V z + b) + shift_m): the identity at first, since U = 0.

    Args:
        width: of z.
        rank: of U V.
        matrices: how many matrices share the layer, each with a scale and a shift of its own.
        generator: draws V.
    """

    def __init__(self, width: int, rank: int, matrices: int, generator: torch.Generator) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.zeros(width, rank))
        self.right = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(matrices, width))
        self.shift = nn.Parameter(torch.zeros(matrices, width))

    def forward(self, z: Tensor, matrix: int) -> Tensor:
        """(tokens, width) -> (tokens, width)."""
        moved = (
            self.scale[matrix] * (z @ self.right.T @ self.left.T + self.bias) + self.shift[matrix]
        )
        return z + moved.clamp(
            min=0
        )  # all is 0 at first, where torch.relu lets no gradient through and this does


class Editor(nn.Module):
    """One network for all matrices of one shape.

    Args:
        d_in, d_out: the shape of the matrices, (d_out, d_in).
        matrices: how many there are.
        rank: of each layer, at most d_in + d_out.
        step_size: alpha at first, one a matrix.
        seed: the network follows from it.
    """

    count: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(
        self, d_in: int, d_out: int, matrices: int, rank: int, step_size: float, seed: int
    ) -> None:
        super().__init__()
        width, generator = d_in + d_out, torch.Generator().manual_seed(seed)
        self.d_in = d_in
        self.layers = nn.ModuleList(
            LowRank(width, min(rank, width), matrices, generator) for _ in range(2)
        )
        self.step_sizes = nn.Parameter(torch.full((matrices,), step_size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("spread", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, flows: Sequence[Flow]) -> None:
        """Take tokens into the running mean and spread (the sum of squared deviations) that
        `forward` normalises by.
        """
        rows = torch.cat([_rows(flow) for flow in flows]).double()
        if not len(rows):
            return
        mean, total = rows.mean(0), self.count + len(rows)
        away = mean - self.mean
        self.spread += (rows - mean).square().sum(0) + away.square() * self.count * len(
            rows
        ) / total
        self.mean += away * len(rows) / total
        self.count.copy_(total)

    def normalised(self, flow: Flow) -> Tensor:
        """[u; d] of the tokens where both are something, (tokens, d_in + d_out), of mean 0 and
        deviation 1.
        """
        deviation = (self.spread / (self.count - 1).clamp(min=1)).sqrt()
        moved = _rows(flow).double() - self.mean
        return (moved / torch.where(deviation > 0, deviation, 1.0)).float()

    def forward(self, flows: Sequence[Flow]) -> list[Tensor]:
        """The change of each matrix, (d_out, d_in); gradients flow into the network."""
        changes = []
        for matrix, flow in enumerate(flows):
            z = self.normalised(flow)
            for layer in self.layers:
                z = layer(z, matrix)
            u, d = z[:, : self.d_in], z[:, self.d_in :]
            changes.append(-self.step_sizes[matrix] * (d.T @ u))
        return changes

    def state(self) -> dict[str, Tensor]:
        """All parameters and running figures."""
        return {
            f"editor.{name}": tensor.detach().cpu().clone()
            for name, tensor in self.state_dict().items()
        }

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Be what `state` described.

        Raises:
            KeyError, ValueError: a tensor is missing or of the wrong shape.
        """
        state.copy_into(self.state_dict(), tensors, "editor.")


def _rows(flow: Flow) -> Tensor:
    """[u; d] of the tokens where neither is all zeros."""
    u, d = flow
    some = (u != 0).any(-1) & (d != 0).any(-1)
    return torch.cat([u[some], d[some]], dim=-1)
