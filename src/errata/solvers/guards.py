"""Guards that keep a stream of weight changes from wrecking a model; off unless asked for.

The norm guard (Norm-Anchor Scaling, Liu et al., arXiv 2602.02543): values solved for on an edited
model are long, they make its weights larger, and these the next values longer, until the model
collapses. So each solved value v* = W k + delta is brought to the mean length of values solved for
on the base model. The paper measures that length on 1,000 CounterFact edits, without the longest
twentieth; here it is that of the stream's own first edits, each solved for on the base model too,
so no data is needed. The published code drops an edit whose value is more than twice (ROME: five
times) as long; here it is scaled like any other.

The spectral guard (REVIVE, Zhang et al., arXiv 2601.11042): what a model can do at all lies in the
leading singular directions of its weights. With W = sum_i s_i u_i v_i^T of the base model, and k
the fewest directions that hold the share `spectral_guard` of sum_i s_i^2, a change loses all
components on them: (I - U_k U_k^T) D (I - V_k V_k^T). No code is published, and the share is our
choice; the paper finds that it matters little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.config import Fraction
from errata.solvers.values import ValueConfig, ValueSolution

ANCHORS = 16
"""The first edits of a stream, whose values on the base model give the length of all."""
GUARDED = {"norm_guard": True, "spectral_guard": 0.3}
"""The settings of a method's variant with both guards."""


@dataclass(frozen=True)
class GuardedConfig(ValueConfig):
    """Settings of every method that writes solved values into weights.

    Attributes:
        norm_guard: bring solved values to the length that they have on the base model.
        spectral_guard: share of a matrix's energy, in its leading singular directions, that changes
            leave alone; 0 for none.
    """

    norm_guard: bool = False
    spectral_guard: Fraction = 0.0


def anchor(lengths: Tensor) -> float:
    """Return the mean of lengths (n,), without the longest twentieth."""
    kept = len(lengths) - len(lengths) // 20
    return float(lengths.sort().values[:kept].mean())


def value_length(value: ValueSolution) -> float:
    """Return |v*| of the bare prompt's value."""
    return float((value.values[0] + value.delta).norm())


def with_length(value: ValueSolution, length: float) -> Tensor:
    """Return the delta (d_out,) with which the bare prompt's value v* has this length."""
    wanted = value.values[0] + value.delta
    scaled: Tensor = wanted * (length / wanted.norm().clamp(min=1e-12))
    return scaled - value.values[0]


class SpectralGuard:
    """Takes the leading singular directions of a matrix out of its changes.

    Args:
        weight: W of the base model, (d_out, d_in).
        share: of the sum of squared singular values that these directions hold.

    Attributes:
        outputs, inputs: U_k (d_out, k) and V_k (d_in, k), in fp64.
    """

    def __init__(self, weight: Tensor, share: float) -> None:
        left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
        energy = values.square().cumsum(0)
        rank = min(len(values), int((energy < share * energy[-1]).sum()) + 1)
        self.outputs, self.inputs = left[:, :rank], right[:rank].T

    def filter(self, change: Tensor) -> Tensor:
        """Return a change (d_out, d_in), in fp64, without these directions on either side."""
        change = change.to(self.outputs)
        change = change - self.outputs @ (self.outputs.T @ change)
        passed: Tensor = change - (change @ self.inputs) @ self.inputs.T
        return passed
