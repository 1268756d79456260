"""`biases`: a vector added to what some modules say. It decides nothing: every input sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from errata.lm import LM
from errata.lm.weights import read_weight
from errata.patches.adapter import Adapters


class Biased(nn.Module):
    """W k + b + c: a linear module (in whose place this stands) and a bias c (d_out,) in fp32;
    alone as long as c is 0.

    Args:
        base: the module, with a bias b of its own or without.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        weight = read_weight(base)
        self.base = base
        self.bias = nn.Parameter(
            torch.zeros(weight.shape[0], device=weight.device), requires_grad=False
        )

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(..., d_out), in the type that the module answers in; the sum is rounded once."""
        said: Tensor = self.base(*args, **kwargs)
        return (said + self.bias).to(said.dtype)


def biases(lm: LM, paths: Iterable[str]) -> Adapters:
    """A bias of zeros on each of the modules so named, under the name `path.bias`."""
    modules = {path: Biased(lm.model.get_submodule(path)) for path in paths}
    return Adapters(modules, {f"{path}.bias": module.bias for path, module in modules.items()})
