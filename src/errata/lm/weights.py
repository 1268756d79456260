"""A linear module's weight matrix and bias as in the papers: v = W k + b, W (d_out, d_in).

transformers stores some matrices transposed (`is_transposed`); the other functions hide that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import ArchitectureError, UsageError


def is_transposed(module: nn.Module) -> bool:
    """Whether a module stores its weight as (in, out), the transpose of the papers' W."""
    return isinstance(module, Conv1D)


PLAIN: tuple[type[Tensor], ...] = (Tensor, nn.Parameter)
"""What a weight may be stored as for its values to be changed."""


def read_weight(module: nn.Module) -> Tensor:
    """Return W of a linear module, (d_out, d_in): a detached view, which follows the model.

    Raises:
        ArchitectureError: the weight is quantised, not in memory, or not a matrix.
    """
    weight, kind = getattr(module, "weight", None), type(module).__name__
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.is_meta:
        raise ArchitectureError(
            f"{kind} has no weight matrix in memory; "
            "editing needs a linear module, without offloading."
        )
    floats = weight.is_floating_point() and weight.element_size() >= 2
    if not floats or type(weight) not in PLAIN:
        stored = (
            f"a {type(weight).__name__}" if floats else str(weight.dtype).removeprefix("torch.")
        )
        raise ArchitectureError(
            f"the weight of {kind} is stored as {stored}; changing it needs plain floats of 16 "
            "bits or more. Load the model without quantisation, e.g. in bfloat16, or take "
            "a method that leaves weights as they are (`errata inspect MODEL` says which)."
        )
    return weight.detach().T if is_transposed(module) else weight.detach()


def weight_device(module: nn.Module) -> torch.device:
    """Return the device of a linear module's weight, in whatever way that is stored."""
    return next(module.parameters()).device


def read_bias(module: nn.Module) -> Tensor | None:
    """Return b of a linear module, (d_out,): a detached view; None where there is none."""
    bias = getattr(module, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def add_to_weight(module: nn.Module, delta: Tensor) -> None:
    """Add delta (d_out, d_in) to W in place; the sum is rounded once, to the weight's own dtype.

    Subtracting the same delta restores W only up to rounding; for an exact copy, keep one.

    Raises:
        ArchitectureError: as `read_weight`.
        UsageError: delta has another shape.
    """
    weight = read_weight(module)
    if delta.shape != weight.shape:
        raise UsageError(
            f"a change of shape {tuple(delta.shape)} does not fit W, {tuple(weight.shape)}."
        )
    weight.add_(delta.detach().to(weight.device))
