"""MEND's editor: the network that turns the gradient of a value matrix into a better change of it.
It knows no models, prompts or losses.

The gradient of a matrix is a sum over tokens, sum_i d_i u_i^T, of its inputs u and of the gradients
d of its outputs. The editor maps each pair (u_i, d_i), normalised, to another: DeltaW = -alpha_m
sum_i d~_i u~_i^T. Mitchell et al., arXiv 2110.11309, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from errata.storage import state

GradientFactors = tuple[Tensor, Tensor]
"""The gradient of one matrix, in factors: inputs u (tokens, d_in) and gradients d of the outputs
(tokens, d_out).
"""


class LowRank(nn.Module):
    """z + ReLU(scale_m * (U V z + b) + shift_m); the identity before training, since U = 0.

    Args:
        width: of z.
        rank: of U V.
        matrices: how many matrices share the layer, each with its own scale and shift.
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
        update = z @ self.right.T @ self.left.T + self.bias
        update = self.scale[matrix] * update + self.shift[matrix]
        # All is 0 before training, where clamp has a gradient and torch.relu has none.
        return z + update.clamp(min=0)


class Editor(nn.Module):
    """One network for all matrices of one shape.

    Args:
        d_in, d_out: the shape of the matrices, (d_out, d_in).
        matrices: how many there are.
        rank: of each layer, at most d_in + d_out.
        step_size: initial alpha of each matrix.
        seed: of the initial weights.
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
    def observe(self, factors: Sequence[GradientFactors]) -> None:
        """Take tokens into the running mean and squared deviations that `normalise` uses."""
        rows = torch.cat([_rows(each) for each in factors]).double()
        if not len(rows):
            return
        mean, total = rows.mean(0), self.count + len(rows)
        shift = mean - self.mean
        between = shift.square() * self.count * len(rows) / total
        self.spread += (rows - mean).square().sum(0) + between
        self.mean += shift * len(rows) / total
        self.count.copy_(total)

    def normalise(self, factors: GradientFactors) -> Tensor:
        """Return [u; d], (tokens, d_in + d_out) in fp32, with mean 0 and deviation 1.

        Only tokens where neither is zero are in it.
        """
        deviation = (self.spread / (self.count - 1).clamp(min=1)).sqrt()
        centred = _rows(factors).double() - self.mean
        return (centred / torch.where(deviation > 0, deviation, 1.0)).float()

    def forward(self, factors: Sequence[GradientFactors]) -> list[Tensor]:
        """Return the change of each matrix, (d_out, d_in); gradients flow into the network."""
        changes = []
        for matrix, each in enumerate(factors):
            z = self.normalise(each)
            for layer in self.layers:
                z = layer(z, matrix)
            u, d = z[:, : self.d_in], z[:, self.d_in :]
            changes.append(-self.step_sizes[matrix] * (d.T @ u))
        return changes

    def state(self) -> dict[str, Tensor]:
        """Return all parameters and running statistics, on the CPU."""
        return {
            f"editor.{name}": tensor.detach().cpu().clone()
            for name, tensor in self.state_dict().items()
        }

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore from `state()`.

        Raises:
            KeyError, ValueError: a tensor is missing or of the wrong shape.
        """
        state.copy_into(self.state_dict(), tensors, "editor.")


def _rows(factors: GradientFactors) -> Tensor:
    """Return [u; d] of the tokens where neither is all zeros."""
    u, d = factors
    nonzero = (u != 0).any(-1) & (d != 0).any(-1)
    return torch.cat([u[nonzero], d[nonzero]], dim=-1)
