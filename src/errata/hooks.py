"""Watch or change what flows through a module, for the length of a `with` block.

Captures are copies: some families add to a module's output in place right after it returns. Every hook comes
off on exit, also when the block raises. Nothing here knows what the tensors mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from errata.errors import ArchitectureError

Change = Callable[[Tensor], Tensor]


@contextmanager
def capture_input(module: nn.Module, *, detach: bool = True) -> Iterator[list[Tensor]]:
    """A list that grows by a copy of the module's input, e.g. (batch, time, d_in), at each forward call.

    With `detach=False` the copies stay in the autograd graph.

    Raises:
        ArchitectureError: on a forward call without a tensor to capture.
    """
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(_copy(_input(module, args, kwargs)[1], detach))

    with _removed_on_exit(module.register_forward_pre_hook(look, with_kwargs=True)):
        yield seen


@contextmanager
def capture_output(module: nn.Module, *, detach: bool = True) -> Iterator[list[Tensor]]:
    """A list that grows by a copy of the module's output, e.g. (batch, time, d_out), at each forward call.

    Of a tuple it is the first element. With `detach=False` the copies stay in the autograd graph.

    Raises:
        ArchitectureError: on a forward call that returns neither a tensor nor a tuple starting with one.
    """
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
        seen.append(_copy(tensor_of(module, output), detach))

    with _removed_on_exit(module.register_forward_hook(look)):
        yield seen


@contextmanager
def replace_input(module: nn.Module, change: Change) -> Iterator[None]:
    """Let the module read `change(x)` in place of its input x; the other arguments pass untouched.

    Raises:
        ArchitectureError: on a forward call without a tensor to change.
    """

    def swap(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name, tensor = _input(module, args, kwargs)
        changed = change(tensor)
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    with _removed_on_exit(module.register_forward_pre_hook(swap, with_kwargs=True)):
        yield


@contextmanager
def replace_output(module: nn.Module, change: Change) -> Iterator[None]:
    """Let the module return `change(y)` in place of its output y; of a tuple, the first element is changed.

    Raises:
        ArchitectureError: on a forward call that returns neither a tensor nor a tuple starting with one.
    """

    def swap(_: nn.Module, args: tuple[Any, ...], output: object) -> object:
        return with_output(output, change(tensor_of(module, output)))

    with _removed_on_exit(module.register_forward_hook(swap)):
        yield


@contextmanager
def add_to_output(module: nn.Module, extra: Change) -> Iterator[None]:
    """Let the module return y + extra(x), where x is its input and y its output; of a tuple, the first element is changed.

    Gradients flow into what `extra` returns.

    Raises:
        ArchitectureError: on a forward call without a tensor to read, or that returns none.
    """

    def swap(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> object:
        said = tensor_of(module, output)
        changed = said + extra(_input(module, args, kwargs)[1]).to(said.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with _removed_on_exit(module.register_forward_hook(swap, with_kwargs=True)):
        yield


@contextmanager
def _removed_on_exit(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _copy(tensor: Tensor, detach: bool) -> Tensor:
    return tensor.detach().clone() if detach else tensor.clone()


def _input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Tensor]:
    """(name, tensor) that a module reads: its first argument (no name), else `hidden_states` or a keyword."""
    if args and isinstance(args[0], Tensor):
        return None, args[0]
    names = sorted((name for name in kwargs if not args), key=lambda name: name != "hidden_states")
    for name in names:
        if isinstance(kwargs[name], Tensor):
            return name, kwargs[name]
    raise ArchitectureError(f"{type(module).__name__} was called without a tensor as its first argument.")


def tensor_of(module: nn.Module, output: object) -> Tensor:
    """The tensor that a module returned: alone, as the first of a tuple, or as `last_hidden_state`.

    Raises:
        ArchitectureError: it returned none.
    """
    first = output[0] if isinstance(output, tuple) and output else getattr(output, "last_hidden_state", output)
    if isinstance(first, Tensor):
        return first
    raise ArchitectureError(
        f"{type(module).__name__} returned {type(output).__name__}; expected a tensor or a tuple that starts with one."
    )


def with_output(output: Any, changed: Tensor) -> object:
    """What a module returned, with another tensor in the place of that which `tensor_of` finds."""
    if isinstance(output, tuple):
        return (changed, *output[1:])
    if isinstance(output, Tensor):
        return changed
    output.last_hidden_state = changed
    return output
