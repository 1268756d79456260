"""`AdaptedHost`: the host with low-rank adapters as SERAC's counterfactual model.

Only the rows in an edit's scope pass through the adapters (`AdaptedHostPatch`); the others are
answered by the host as it is, bit for bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.lm.encoding import Batch
from errata.lm.hooks import add_to_output
from errata.lm.logits import logits_at
from errata.patches.context import ContextFor, ContextPatch
from errata.patches.grown import GROWN

Adapter = tuple[Tensor, Tensor]
"""A (rank, d_in) and B (d_out, rank): the module's output becomes W k + b + B A k."""


class AdaptedHost:
    """A counterfactual model: the host with low-rank adapters on every block's value matrix.

    B is zero before training, so that it begins as the host.

    Args:
        lm: the host.
        rank: of the adapters.
        seed: draws A.

    Attributes:
        adapters: by the full name of the adapted module.
        parameters: the parameters to train, by name.
    """

    def __init__(self, lm: LM, rank: int, seed: int) -> None:
        self.lm = lm
        self.adapters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        architecture, generator = lm.architecture, torch.Generator().manual_seed(seed)
        d_in, d_out = architecture.d_in, architecture.d_out
        for layer in range(architecture.n_layers):
            path = architecture.value_path(layer)
            device = next(lm.model.get_submodule(path).parameters()).device
            down = torch.randn(rank, d_in, generator=generator) / math.sqrt(d_in)
            adapter = (
                nn.Parameter(down.to(device)),
                nn.Parameter(torch.zeros(d_out, rank, device=device)),
            )
            self.adapters[path] = adapter
            self.parameters |= {f"{path}.down": adapter[0], f"{path}.up": adapter[1]}

    def logits_at(self, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
        """Return logits (n, vocabulary), fp32, at positions; gradients flow into the parameters."""
        with contextlib.ExitStack() as hooks:
            for path, adapter in self.adapters.items():
                module = self.lm.model.get_submodule(path)
                hooks.enter_context(add_to_output(module, partial(adapter_output, adapter)))
            return logits_at(self.lm, batch, rows, columns)

    def patch(self, context_for: ContextFor | None) -> ContextPatch:
        """Return the patch by which it answers, on the host, the prompts that get a context."""
        return AdaptedHostPatch(self.adapters, context_for)


class AdaptedHostPatch(ContextPatch):
    """Puts text in front of prompts, and adapters on just these rows.

    Args:
        adapters: by the full name of the adapted module.
        context_for: what to put in front of which prompts, see `ContextPatch`.
    """

    def __init__(
        self, adapters: Mapping[str, Adapter], context_for: ContextFor | None = None
    ) -> None:
        super().__init__(context_for)
        self.adapters = adapters

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        adapted = [
            lm.model.get_submodule(path).register_forward_hook(self._adapt(adapter))
            for path, adapter in self.adapters.items()
        ]
        return [*super()._register_hooks(lm), *adapted]

    def _adapt(self, adapter: Adapter) -> Callable[..., Tensor | None]:
        """Return a forward hook that adds the adapter's output in the rows in scope."""

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._pass is None or (route := self._pass.route) is None:
                return None
            in_scope = (route[:, GROWN] > 0).to(output.device)
            if not bool(in_scope.any()):
                return None
            changed = output.reshape(len(route), -1, output.shape[-1]).clone()
            keys = args[0].reshape(len(route), -1, args[0].shape[-1])[in_scope]
            changed[in_scope] += adapter_output(adapter, keys).to(output.dtype)
            return changed.reshape(output.shape)

        return hook


def adapter_output(adapter: Adapter, keys: Tensor) -> Tensor:
    """Return B A k, (..., d_out), of keys (..., d_in)."""
    down, up = adapter
    return F.linear(F.linear(keys.to(down), down), up)
