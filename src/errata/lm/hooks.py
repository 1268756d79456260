"""Capture or change the inputs and outputs of a module, for the length of a `with` block.

Captures are copies: some families add to a module's output in place right after it returns. Every
hook is removed on exit, also when the block raises. A hook acts only on calls of the thread that
set it, so one thread may capture while others use the model. Nothing here knows what the tensors
mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from errata.errors import ArchitectureError

Change = Callable[[Tensor], Tensor]
Value = TypeVar("Value")


class PerThread(Generic[Value]):
    """A value that each thread sets for itself; a copy or pickle starts without any.

    Args:
        initial: a thread's value before it sets one.
    """

    def __init__(self, initial: Value) -> None:
        self._initial = initial
        self._values: dict[int, Value] = {}

    def get(self) -> Value:
        """Return this thread's value."""
        return self._values.get(get_ident(), self._initial)

    def set(self, value: Value) -> None:
        """Set this thread's value; the initial one takes no memory."""
        if value is self._initial:
            self._values.pop(get_ident(), None)
        else:
            self._values[get_ident()] = value

    @contextmanager
    def temporarily(self, value: Value) -> Iterator[None]:
        """Set this thread's value for the length of a `with` block."""
        outer = self.get()
        self.set(value)
        try:
            yield
        finally:
            self.set(outer)

    def __getstate__(self) -> dict[str, Any]:
        return {"_initial": self._initial, "_values": {}}


@contextmanager
def capture_input(module: nn.Module, *, detach: bool = True) -> Iterator[list[Tensor]]:
    """Capture the module's inputs: a list that grows by one copy at each forward call.

    A copy is of shape (batch, time, d_in), for example.

    With `detach=False` the copies stay in the autograd graph.

    Raises:
        ArchitectureError: on a forward call without a tensor to capture.
    """
    captured: list[Tensor] = []

    def capture(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append(_copy(_input(module, args, kwargs), detach))

    with module.register_forward_pre_hook(_in_this_thread(capture), with_kwargs=True):
        yield captured


@contextmanager
def capture_output(module: nn.Module, *, detach: bool = True) -> Iterator[list[Tensor]]:
    """Capture the module's outputs: a list that grows by one copy at each forward call.

    A copy is of shape (batch, time, d_out), for example.

    Of a tuple, the first element is captured. With `detach=False` the copies stay in the autograd
    graph.

    Raises:
        ArchitectureError: on a forward call that returns neither a tensor nor a tuple starting with
            one.
    """
    captured: list[Tensor] = []

    def capture(_: tuple[Any, ...], output: object) -> None:
        captured.append(_copy(tensor_of(module, output), detach))

    with module.register_forward_hook(_in_this_thread(capture)):
        yield captured


@contextmanager
def replace_output(module: nn.Module, change: Change) -> Iterator[None]:
    """Make the module return `change(y)` instead of its output y.

    Of a tuple, the first element is changed.

    Raises:
        ArchitectureError: on a forward call that returns neither a tensor nor a tuple starting with
            one.
    """

    def swap(_: tuple[Any, ...], output: object) -> object:
        return with_output(output, change(tensor_of(module, output)))

    with module.register_forward_hook(_in_this_thread(swap)):
        yield


@contextmanager
def add_to_output(module: nn.Module, extra: Change) -> Iterator[None]:
    """Make the module return y + extra(x) for its input x and output y.

    Of a tuple, the first element is changed.

    Gradients flow into what `extra` returns.

    Raises:
        ArchitectureError: on a forward call without a tensor to read, or that returns none.
    """

    def swap(args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> object:
        y = tensor_of(module, output)
        return with_output(output, y + extra(_input(module, args, kwargs)).to(y.dtype))

    with module.register_forward_hook(_in_this_thread(swap), with_kwargs=True):
        yield


@contextmanager
def stop_after(module: nn.Module) -> Iterator[None]:
    """Leave the `with` block as soon as the module has run: what lies above it does not run.

    Hooks set on the module before are called; the block's own result is lost.
    """

    def stop(*_: object) -> None:
        raise _ReachedError

    with module.register_forward_hook(_in_this_thread(stop)), contextlib.suppress(_ReachedError):
        yield


class _ReachedError(Exception):
    """The module has run; `stop_after` catches it."""


def _in_this_thread(act: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that acts in this thread only.

    In another it may be called with too few arguments, when this thread removes it during that
    thread's forward call.
    """
    owner = get_ident()

    def hook(_: nn.Module, *args: Any) -> Any:
        return act(*args) if get_ident() == owner else None

    return hook


def _copy(tensor: Tensor, detach: bool) -> Tensor:
    return tensor.detach().clone() if detach else tensor.clone()


def _input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a module's input: the first argument, `hidden_states`, or the first tensor keyword."""
    candidates = args[:1] if args else (kwargs.get("hidden_states"), *kwargs.values())
    for tensor in candidates:
        if isinstance(tensor, Tensor):
            return tensor
    raise ArchitectureError(
        f"{type(module).__name__} was called without a tensor as its first argument."
    )


def tensor_of(module: nn.Module, output: object) -> Tensor:
    """Return an output's tensor: itself, a tuple's first, or `last_hidden_state`.

    Raises:
        ArchitectureError: there is none.
    """
    first = (
        output[0]
        if isinstance(output, tuple) and output
        else getattr(output, "last_hidden_state", output)
    )
    if isinstance(first, Tensor):
        return first
    raise ArchitectureError(
        f"{type(module).__name__} returned {type(output).__name__}; "
        "expected a tensor or a tuple that starts with one."
    )


def with_output(output: Any, changed: Tensor) -> object:
    """Return a module's output with another tensor instead of the one that `tensor_of` finds."""
    if isinstance(output, tuple):
        return (changed, *output[1:])
    if isinstance(output, Tensor):
        return changed
    output.last_hidden_state = changed
    return output
