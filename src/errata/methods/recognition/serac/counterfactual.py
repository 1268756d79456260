"""`CounterfactualPatch`: prompts in scope are answered by a counterfactual model that reads an edit
before the prompt.

The counterfactual model is the host itself behind low-rank adapters, which only the rows in scope
pass through; all others are answered by the host as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.lm import LM
from errata.patches.context import ContextFor, ContextPatch

Adapters = Mapping[str, tuple[Tensor, Tensor]]
"""By a linear module's path: A (rank, d_in) and B (d_out, rank); the module says W k + b + B A k.
"""


class CounterfactualPatch(ContextPatch):
    """Text in front of the prompts in scope, and adapters for just those rows.

    Args:
        adapters: of the counterfactual model.
        context_for: what to put in front of which prompts, see `ContextPatch`.
        room: tokens of the model's context that are left to the answer.
    """

    def __init__(
        self, adapters: Adapters, context_for: ContextFor | None = None, room: int | None = None
    ) -> None:
        super().__init__(context_for, room)
        self.adapters = adapters

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        modules = {path: lm.model.get_submodule(path) for path in self.adapters}
        adapted = [
            module.register_forward_hook(self._adapter(path)) for path, module in modules.items()
        ]
        return [*super()._register_hooks(lm), *adapted]

    def _adapter(self, path: str) -> Callable[..., Tensor | None]:
        def adapt(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._pass is None or (route := self._pass.route) is None:
                return None
            inside = route[:, 0] > 0
            if not bool(inside.any()):
                return None
            inside, rows = inside.to(output.device), len(route)
            changed = output.reshape(rows, -1, output.shape[-1]).clone()
            keys = args[0].reshape(rows, -1, args[0].shape[-1])[inside]
            changed[inside] += adapter_output(self.adapters[path], keys).to(output.dtype)
            return changed.reshape(output.shape)

        return adapt


def adapter_output(adapter: tuple[Tensor, Tensor], keys: Tensor) -> Tensor:
    """B A k, (..., d_out), of keys (..., d_in)."""
    down, up = adapter
    return F.linear(F.linear(keys.to(down), down), up)
