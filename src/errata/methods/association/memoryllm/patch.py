"""`MemoryTokens`: at every block, hidden states of a memory in front of those of the text.

They are virtual tokens (see `patches/virtual_tokens.py`) whose hidden states are set anew at the
input of each block, so that the block's own norm and projections make keys and values of them, and
whatever a block makes of them does not reach the next; so its feed-forward part, most of its price,
does not read them. Low-rank adapters come on and off with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from errata.lm import LM
from errata.lm.encoding import Batch
from errata.lm.hooks import capture_input, capture_output, tensor_of, with_output
from errata.patches import Adapters, VirtualTokens
from errata.patches.base import Arguments
from errata.patches.forward_state import prompt_mask

Recall = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, hidden states (batch, width, hidden), prompt (batch, width) bool) -> the memory that the
rows get besides, (batch, more, hidden).
"""


class MemoryTokens(VirtualTokens):
    """Put n hidden states in front of a text at every block.

    Args:
        memory: (layers, n, hidden), or (layers, batch, n, hidden) where rows have their own.
        adapters: are installed with the memory.
        recalled: how many of the n, next behind the first, are chosen at each block for each row by
            `recall`; `memory` is then (layers, n - recalled, hidden).
        recall: see `Recall`; a row's choice is made in its first forward call, by its prompt alone.
        mark: (hidden,), is added at every block to the last `marked` hidden states of a row.
        marked: so many.
    """

    def __init__(
        self,
        memory: Tensor,
        adapters: Adapters,
        recalled: int = 0,
        recall: Recall | None = None,
        mark: Tensor | None = None,
        marked: int = 0,
    ) -> None:
        count = memory.shape[-2] + recalled
        super().__init__(torch.zeros(count, memory.shape[-1]))
        self.states = memory
        self.adapters = adapters
        self.recall = recall if recalled else None
        self.mark, self.marked = mark, marked

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The hidden states."""
        return {"memory": self.states}

    def keys_and_values(self, lm: LM) -> list[tuple[Tensor, Tensor]]:
        """Return what each layer's attention sees of the memory, (1, heads, n, head width) each.

        Gradients flow into the memory and the adapters.
        """
        cache = DynamicCache(config=lm.model.config)
        with self.on(lm):
            token = torch.tensor([[lm.pad_id]], device=lm.device)
            lm.model(input_ids=token, **{lm.cache_name: cache})
        n = self.count
        return [(layer.keys[:, :, :n], layer.values[:, :, :n]) for layer in cache.layers]

    # installed

    def _attach(self, lm: LM) -> None:
        self.adapters.install(lm)
        super()._attach(lm)

    def _detach(self, lm: LM) -> None:
        super()._detach(lm)
        self.adapters.remove()

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        model, architecture, hooks = lm.model, lm.architecture, []
        for layer in range(architecture.n_layers):
            block = architecture.block(model, layer)
            enter = partial(self._enter_block, layer)
            hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            part = model.get_submodule(architecture.value_path(layer).rpartition(".")[0])
            if self.mark is None and part is not block:  # else what is made of them is read
                hooks.append(part.register_forward_pre_hook(self._narrow, with_kwargs=True))
                hooks.append(part.register_forward_hook(self._widen))
        return hooks

    def _narrow(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[Any, ...], Arguments] | None:
        """Leave the memory out of what a module reads."""
        insertion = self._insertions.get()
        if insertion is None:
            return None
        narrowed = insertion.layout.narrowed
        return tuple(map(narrowed, args)), {name: narrowed(x) for name, x in kwargs.items()}

    def _widen(self, module: nn.Module, _: tuple[Any, ...], output: object) -> object:
        """Make room for the memory again; what stands there is not read."""
        insertion = self._insertions.get()
        if insertion is None:
            return output
        return with_output(output, insertion.layout.widened(tensor_of(module, output)))

    def _insert(self, arguments: Arguments, tokens: Tensor) -> None:
        prompt = None
        if self.recall is not None:
            prompt = prompt_mask(arguments, (tokens.shape[0], tokens.shape[1]), tokens.device)
        super()._insert(arguments, tokens)
        insertion = self._insertions.get()
        if prompt is not None and insertion is not None:
            insertion.prompt = insertion.layout.widened(prompt) & ~insertion.layout.slots

    def _enter_block(
        self, layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[Any, ...], Arguments] | None:
        """Set the hidden states of the memory at the input of a block."""
        insertion = self._insertions.get()
        if insertion is None:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        states = self.states[layer].to(hidden.device)
        if self.recall is not None and insertion.prompt is not None:
            more = self.recall(layer, hidden, insertion.prompt).to(states)
            own = states.expand(len(more), *states.shape)
            states = torch.cat([own[:, :1], more, own[:, 1:]], dim=1)
        changed = insertion.layout.filled(hidden, states)
        if self.mark is not None:
            added = torch.zeros_like(changed[0])
            added[-self.marked :] = self.mark.to(changed)
            changed = changed + added
        if args:
            return (changed, *args[1:]), kwargs
        return (), {**kwargs, "hidden_states": changed}


def last_states(lm: LM, patch: MemoryTokens, batch: Batch, count: int, inputs: bool) -> Tensor:
    """Return the last `count` hidden states at each block, those of the memory included.

    Args:
        lm: the base model, without patches.
        patch: is on meanwhile.
        batch: padded on the left.
        count: at most the tokens of the memory and of the shortest row together.
        inputs: what each block reads; else what it makes.

    Returns:
        (layers, batch, count, hidden), fp32; gradients flow into the memory and the adapters.
    """
    capture = capture_input if inputs else capture_output
    with contextlib.ExitStack() as hooks:
        hooks.enter_context(patch.on(lm))
        states = [
            hooks.enter_context(capture(lm.architecture.block(lm.model, i), detach=False))
            for i in range(lm.architecture.n_layers)
        ]
        lm.run(batch, keep=1, use_cache=False)
    return torch.stack([each[0][:, -count:].float().to(lm.device) for each in states])
