"""`Tail`: run a model from one value matrix upward on cached inputs, which makes editing fast.

A method that changes the output of one value matrix changes nothing below it: for a given batch all
of that is constant. `Tail` runs it once, records the outputs, and afterwards runs the model's own
forward with the lower blocks (and the parts of the edited block before the value matrix) returning
their recorded outputs. The model's own code does the rest (masks, positions, final norm, head,
soft-capping), so no family needs a special case. The head is applied only at the positions that
matter. This trains nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from errata.errors import ArchitectureError
from errata.lm.encoding import Batch
from errata.lm.lm import LM


class _Reached(Exception):
    """Stops the recording pass after the value matrix: the rest need not run."""


class Tail:
    """The model above the value matrix of `layer`, for one batch.

    Args:
        lm: the base model, without patches.
        layer: the edited block.
        batch: padded rows.
        cached: False runs the whole model at every step (the published way; kept for measuring).

    Attributes:
        keys: (batch, width, d_in), the inputs of the value matrix, in the model's dtype.
        values: (batch, width, d_out), its outputs W k + b, in the model's dtype.

    Raises:
        ArchitectureError: the model does not run its blocks in order.
    """

    def __init__(self, lm: LM, layer: int, batch: Batch, cached: bool = True) -> None:
        self._lm = lm
        self._batch = batch
        self._value = lm.architecture.value_module(lm.model, layer)
        self._head = lm.architecture.head_module(lm.model)
        self._lower, self._beside = _constant_modules(lm, layer)
        self._recorded: dict[nn.Module, list[Any]] = {}
        self._shape: torch.Size = torch.Size()
        self.keys, self.values = self._record()
        if not cached:
            self._recorded = {}

    def logits(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return logits (n, vocabulary), fp32, with `values` as the output of the value matrix.

        Args:
            values: (batch, width, d_out); gradients flow into it.
            rows, columns: (n,) each, the positions that the head reads.
        """
        forwards: dict[nn.Module, Callable[..., Any]] = {
            module: _replay(module, outputs) for module, outputs in self._recorded.items()
        }
        # a copy, since some families add to it in place
        output = values.to(self.values.dtype).reshape(self._shape).clone()
        original = self._value.forward
        if self._recorded:
            forwards[self._value] = lambda *args, **kwargs: output
        else:
            forwards[self._value] = lambda *args, **kwargs: original(*args, **kwargs) * 0 + output
        picked = self._head.register_forward_pre_hook(
            lambda _, args: (
                args[0][rows.to(args[0].device), columns.to(args[0].device)][None],
                *args[1:],
            )
        )
        try:
            with _replace_forwards(forwards):
                logits: Tensor = self._forward().logits
                return logits[0].float()
        finally:
            picked.remove()

    def _forward(self) -> Any:
        return self._lm.run(self._batch, use_cache=False)

    @torch.no_grad()
    def _record(self) -> tuple[Tensor, Tensor]:
        """Run up to the value matrix and record the outputs below it; return its (keys, values)."""
        reached: list[tuple[Tensor, Tensor]] = []

        def record(module: nn.Module, _: Any, output: Any) -> None:
            self._recorded.setdefault(module, []).append(_copy(output))

        def stop(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            reached.append((args[0].clone(), output.clone()))
            raise _Reached

        last = self._lower[-1:]
        hooks = [module.register_forward_hook(record) for module in (*last, *self._beside)]
        hooks.append(self._value.register_forward_hook(stop))
        try:
            self._forward()
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if not reached:
            raise ArchitectureError(
                "the value matrix was never called; this model does not run its blocks in order."
            )
        for module in self._lower:
            self._recorded.setdefault(module, self._recorded[last[0]])
        keys, values = reached[0]
        self._shape = values.shape
        size = self._batch.input_ids.shape
        return keys.reshape(*size, -1), values.reshape(*size, -1)


class AnswerTail:
    """The tail of one prompt and answer: the answer's logits with the value matrix changed.

    Args:
        lm: the base model, without patches.
        layer: the edited block.
        prompt: the question.
        target: its answer.
        ending: text after the answer, followed by the end token; None: neither.
        at_prompt: predict every token at the prompt's last one, as FT-L does.

    Attributes:
        labels: (n,), the tokens of the answer and its ending.
    """

    def __init__(
        self,
        lm: LM,
        layer: int,
        prompt: str,
        target: str,
        ending: str | None = None,
        at_prompt: bool = False,
    ) -> None:
        batch = lm.batch([lm.encode(prompt, target, ending)])
        self._tail = Tail(lm, layer, batch)
        self._keys, self._values = self._tail.keys.float(), self._tail.values.float()
        self._rows, self._columns, labels = batch.label_positions(
            batch.target_mask | batch.ending_mask
        )
        if at_prompt:
            self._columns = self._columns.min().expand_as(self._columns)
        self.labels = labels.to(self._keys.device)

    def logits(self, delta: Tensor) -> Tensor:
        """Return logits (n, vocabulary), fp32, of the answer's tokens at W + delta.

        Args:
            delta: (d_out, d_in), fp32; gradients flow into it.
        """
        values = self._values + nn.functional.linear(self._keys, delta)
        return self._tail.logits(values, self._rows, self._columns).to(self.labels.device)


def _constant_modules(lm: LM, layer: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """(blocks below `layer`, modules in its block beside the path to the value matrix)."""
    lower = [lm.architecture.block(lm.model, i) for i in range(layer)]
    beside: list[nn.Module] = []
    parent: nn.Module = lm.architecture.block(lm.model, layer)
    for name in lm.architecture.w_out.split("."):
        beside.extend(child for other, child in parent.named_children() if other != name)
        parent = getattr(parent, name)
    return lower, beside


def _replay(module: nn.Module, outputs: Sequence[Any]) -> Callable[..., Any]:
    """Make a forward that returns recorded outputs in order, then runs the module itself.

    The later calls are those above the value matrix.
    """
    recorded, original = iter(outputs), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        for output in recorded:
            return output
        return original(*args, **kwargs)

    return forward


def _copy(output: Any) -> Any:
    """A copy of a module's output, since some families write into it afterwards."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, tuple):
        return tuple(_copy(part) for part in output)
    return output


@contextlib.contextmanager
def _replace_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules other forwards for the length of a `with` block."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward_before in before.items():
            if forward_before is None:
                del module.forward
            else:
                module.forward = forward_before
