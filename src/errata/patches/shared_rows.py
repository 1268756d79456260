"""Rows of a batch that a patch leaves to another: there a module's output is the base model's."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.lm.weights import is_transposed
from errata.patches.base import Rows


def where_rows(rows: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Return a module's output, `inside` in these rows and `outside` in the others.

    Args:
        rows: (batch,) bool.
        inside: (batch, ...) or (batch * width, ...), as the model's family has it.
        outside: of the same shape.
    """
    kept = rows.to(inside.device).repeat_interleave(inside.shape[0] // len(rows))
    return torch.where(kept.view(-1, *[1] * (inside.dim() - 1)), inside, outside)


def kept_outputs(
    changed: Mapping[str, nn.Module], base: Mapping[str, nn.Module], rows: Callable[[], Rows]
) -> list[RemovableHandle]:
    """Let changed modules have the base model's output but for some rows.

    Args:
        changed: modules in the model, by path.
        base: the base model's own modules, by the same paths.
        rows: the rows of the running call that are changed.
    """
    return [
        changed[path].register_forward_hook(partial(_with_kept, module, rows), with_kwargs=True)
        for path, module in base.items()
    ]


def with_weight(module: nn.Module, weight: Tensor) -> nn.Module:
    """Return a module that is like another without its hooks, but for its weight.

    Args:
        module: it shares its other parameters with this one.
        weight: (d_out, d_in), see `lm.weights`.
    """
    like = copy.copy(module)
    own = weight.T if is_transposed(module) else weight
    like._parameters = {**module._parameters, "weight": nn.Parameter(own, requires_grad=False)}
    like._forward_hooks, like._forward_pre_hooks = OrderedDict(), OrderedDict()
    return like


def _with_kept(
    base: nn.Module,
    rows: Callable[[], Rows],
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> Tensor | None:
    there = rows()
    if there is True:
        return None
    kept: Tensor = base(*args, **kwargs)
    return kept if there is False else where_rows(there, output, kept)
