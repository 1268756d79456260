"""BitFit: train biases, and nothing else, on the edits (Ben Zaken et al., arXiv 2106.10199).

The paper trains the biases a model has. Many families have none, so every family gets the same
ones here, in a place that all of them have: one on the value matrix of every block, W k + b + c,
which trains b where there is one. n_layers * hidden numbers are trained, one set for all edits,
edit after edit, with the loss of `solvers/adapters.py`.

A bias is the same for every input: it cannot tell an edit's prompt from another, so what the
divergence term preserves of the base model is lost to the edits. This is a floor to measure other
methods by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from errata.config import NonNegativeFloat
from errata.lm.weights import weight_device
from errata.methods.adapter_method import ValueMatrixMethod
from errata.patches import Adapters
from errata.solvers.adapters import AdapterTrainerConfig


@dataclass(frozen=True)
class BitFitConfig(AdapterTrainerConfig):
    """Settings of BitFit.

    Attributes:
        layer: the one block whose bias is trained; None: every block's.
    """

    method: ClassVar[str] = "bitfit"

    lr: NonNegativeFloat = 1e-2


class Biased(nn.Module):
    """W k + b + c: a linear module and a bias c (d_out,) in fp32, zero at first.

    Args:
        base: the module, with or without a bias b of its own.
        size: d_out.
    """

    def __init__(self, base: nn.Module, size: int) -> None:
        super().__init__()
        self.base = base
        zeros = torch.zeros(size, device=weight_device(base))
        self.bias = nn.Parameter(zeros, requires_grad=False)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return (..., d_out) in the dtype of the module's output; the sum is rounded once."""
        output: Tensor = self.base(*args, **kwargs)
        return (output + self.bias).to(output.dtype)


class BitFit(ValueMatrixMethod):
    """Biases on the value matrices, one set for all edits."""

    config_class = BitFitConfig
    paper = "arXiv 2106.10199"

    def begin(self) -> Adapters:
        """Return biases of zero, each under the name `path.bias`."""
        size = self.lm.architecture.d_out
        modules = {path: Biased(self.lm.model.get_submodule(path), size) for path in self.paths}
        return Adapters(modules, {f"{path}.bias": module.bias for path, module in modules.items()})
