"""`Tail`: run a model from one value matrix upward on cached inputs. This is what makes editing
fast; it trains nothing.

A method that changes the output of one value matrix changes nothing below it: for a given batch all
of that is constant. `Tail` runs it once, remembers what flowed, and afterwards lets the model's own
forward run with the lower blocks (and the parts of the edited block that come before the value
matrix) handing out what they said the first time. The model's own code does the rest (masks,
positions, final norm, head, soft-capping), so no family needs a special case. The head is applied
only at the positions that matter.
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
    """Raised inside the recording pass when the value matrix has spoken: the rest need not run."""


class Tail:
    """The model above the value matrix of `layer`, for one batch.

    Args:
        lm: the base model, without patches.
        layer: the edited block.
        batch: padded rows.
        cached: False runs the whole model at every step (the published way; kept for measuring).

    Attributes:
        keys: (batch, width, d_in), the inputs of the value matrix.
        values: (batch, width, d_out), its outputs W k + b.
    """

    def __init__(self, lm: LM, layer: int, batch: Batch, cached: bool = True) -> None:
        self._lm = lm
        self._batch = batch
        self._value = lm.architecture.value_module(lm.model, layer)
        self._head = lm.architecture.head_module(lm.model)
        self._lower, self._beside = _constant_modules(lm, layer)
        self._said: dict[nn.Module, list[Any]] = {}
        self._shape: torch.Size = torch.Size()
        self.keys, self.values = self._record()
        if not cached:
            self._said = {}

    def logits(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits (n, vocabulary) at (rows, columns), each (n,), with the value matrix saying
        `values`.

        Args:
            values: (batch, width, d_out); gradients flow into it.
        """
        forwards: dict[nn.Module, Callable[..., Any]] = {
            m: _again(m, said) for m, said in self._said.items()
        }
        spoken = (
            values.to(self.values.dtype).reshape(self._shape).clone()
        )  # a family may add into it in place
        original = self._value.forward
        if self._said:
            forwards[self._value] = lambda *args, **kwargs: spoken
        else:
            forwards[self._value] = lambda *args, **kwargs: original(*args, **kwargs) * 0 + spoken
        picked = self._head.register_forward_pre_hook(
            lambda _, args: (
                args[0][rows.to(args[0].device), columns.to(args[0].device)][None],
                *args[1:],
            )
        )
        try:
            with _replaced(forwards):
                logits: Tensor = self._forward().logits
                return logits[0].float()
        finally:
            picked.remove()

    def _forward(self) -> Any:
        return self._lm.run(self._batch, use_cache=False)

    @torch.no_grad()
    def _record(self) -> tuple[Tensor, Tensor]:
        """One pass up to the value matrix."""
        flowed: dict[str, Tensor] = {}

        def remember(module: nn.Module, _: Any, output: Any) -> None:
            self._said.setdefault(module, []).append(_copied(output))

        def reached(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            flowed["keys"], flowed["values"] = args[0].clone(), output.clone()
            raise _Reached

        last = self._lower[-1:]
        hooks = [module.register_forward_hook(remember) for module in (*last, *self._beside)]
        hooks.append(self._value.register_forward_hook(reached))
        try:
            self._forward()
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if not flowed:
            raise ArchitectureError(
                "the value matrix was never called; this model does not run its blocks in order."
            )
        for module in self._lower:
            self._said.setdefault(module, self._said[last[0]])
        self._shape = flowed["values"].shape
        size = self._batch.input_ids.shape
        return flowed["keys"].reshape(*size, -1), flowed["values"].reshape(*size, -1)


class AnswerTail:
    """One prompt's answer as the tail sees it: its logits with the value matrix changed.

    Args:
        lm: the base model, without patches.
        layer: the edited block.
        prompt: the question.
        target: its answer.
        ending: text after the answer, then the end token; None: neither is a part of it.
        at_prompt: predict every token at the last one of the prompt, as FT-L does.

    Attributes:
        labels: (n,), the tokens of the answer.
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
        """Logits (n, vocabulary) of the answer's tokens at W + delta, delta (d_out, d_in) with or
        without a gradient.
        """
        spoken = self._values + nn.functional.linear(self._keys, delta)
        return self._tail.logits(spoken, self._rows, self._columns).to(self.labels.device)


def _constant_modules(lm: LM, layer: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """Blocks below `layer`; and, inside it, the modules beside the path to the value matrix."""
    lower = [lm.architecture.block(lm.model, i) for i in range(layer)]
    beside: list[nn.Module] = []
    parent: nn.Module = lm.architecture.block(lm.model, layer)
    for name in lm.architecture.w_out.split("."):
        beside.extend(child for other, child in parent.named_children() if other != name)
        parent = getattr(parent, name)
    return lower, beside


def _again(module: nn.Module, said: Sequence[Any]) -> Callable[..., Any]:
    """What was said below the value matrix, in order; calls beyond that are calls above it, and the
    module answers them.
    """
    answers, answer = iter(said), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        for kept in answers:
            return kept
        return answer(*args, **kwargs)

    return forward


def _copied(output: Any) -> Any:
    """A copy: some families go on to write into what a module returned."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, tuple):
        return tuple(_copied(part) for part in output)
    return output


@contextlib.contextmanager
def _replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules answer by other functions for a while."""
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
