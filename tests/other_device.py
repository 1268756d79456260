"""A device beside the processor, for machines that have none.

Its tensors lie in ordinary memory, but say `other:0`, cannot be read without being copied, and must
not meet others: what forgets a `.to(device)` fails as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "other"
PLACED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}
"""Operations that take places from the processor; values they read or write must be together."""


def register() -> None:
    """Make `torch.device("other")` known: once, in a process that does nothing else."""
    _setup_privateuseone_for_python_backend(NAME)


@contextmanager
def other_device() -> Iterator[None]:
    """Within this, tensors can be made on the other device and moved there."""
    with _Operations(), _Makers():
        yield


class OtherTensor(Tensor):
    """A tensor of the other device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OtherTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})

    def __repr__(self) -> str:
        return f"OtherTensor({self.inner!r})"

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_as_tensors(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        value = value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype)
        super().__setitem__(_as_tensors(key), value)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"a tensor of {self.device} has no array; call cpu() first")

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or self.device)


class _Operations(TorchDispatchMode):
    """Also operations without such a tensor, which may make one."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


class _Makers(TorchFunctionMode):
    """What makes a tensor of numbers makes it in memory first."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        makes = function in (torch.tensor, torch.as_tensor)
        if makes and device is not None and torch.device(device).type == NAME:
            return function(*args, **{**kwargs, "device": None}).to(torch.device(NAME, 0))
        return function(*args, **kwargs)


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, device = operation._schema.name, kwargs.get("device")
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    here = [leaf for leaf in leaves if not isinstance(leaf, OtherTensor)]
    there = [leaf for leaf in leaves if isinstance(leaf, OtherTensor)]
    if device is None and name != "aten::copy_" and there:
        met = here
        if name in PLACED:  # args: the tensor, places, values
            met = [one for one in (args[0], *args[2:]) if any(one is each for each in here)]
            met = met if isinstance(args[0], OtherTensor) else there
        if any(tensor.dim() for tensor in met):
            raise RuntimeError(f"{name} was given tensors of {NAME}:0 and of the processor")
    inner_args, inner = tree_map(_inner, args), tree_map(_inner, kwargs)
    if device is not None:
        inner["device"] = torch.device("cpu")
    out = operation(*inner_args, **inner)
    if name == "aten::copy_":
        return args[0]
    is_there = bool(there) if device is None else torch.device(device).type == NAME
    if not is_there:
        return out
    made = tree_map(lambda leaf: OtherTensor(leaf) if isinstance(leaf, Tensor) else leaf, out)
    return (
        made if device is not None else return_and_correct_aliasing(operation, args, kwargs, made)
    )


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, OtherTensor) else leaf


def _as_tensors(key: Any) -> Any:
    if isinstance(key, list):
        return torch.tensor(key, dtype=None if key else torch.long)
    return tuple(map(_as_tensors, key)) if isinstance(key, tuple) else key
