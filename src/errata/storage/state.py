"""Read tensors and plain values from a saved state by name, with checks. This knows no method.

All functions raise a `KeyError` (missing) or a `ValueError` (not valid) with the name and what was
expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["float", "whole", "bits"]
_WHOLE = (torch.int16, torch.int32, torch.int64)


def tensor(
    tensors: Mapping[str, Tensor], name: str, shape: Sequence[int | None], kind: Kind = "float"
) -> Tensor:
    """Return the tensor of this name.

    Args:
        tensors: the state's tensors.
        name: the name.
        shape: the expected shape; None where a dimension may have any size.
        kind: `float` of any precision, `whole` (int16 to int64) or `bits` (uint8).

    Raises:
        KeyError: there is none.
        ValueError: it is of another shape or kind.
    """
    if name not in tensors:
        raise KeyError(f"the tensor {name!r} is missing")
    stored = tensors[name]
    fits = len(stored.shape) == len(shape) and all(
        size in (None, actual) for actual, size in zip(stored.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name!r} is of shape {tuple(stored.shape)} instead of ({wanted})")
    is_kind = {
        "float": stored.is_floating_point(),
        "whole": stored.dtype in _WHOLE,
        "bits": stored.dtype == torch.uint8,
    }[kind]
    if not is_kind:
        raise ValueError(f"{name!r} is of type {stored.dtype}; expected {kind}")
    return stored


def numbers(
    tensors: Mapping[str, Tensor], name: str, count: int | None, low: int, high: int
) -> list[int]:
    """Return the whole numbers of a tensor (count,), each from low to high.

    Raises:
        KeyError, ValueError: there is no such tensor, or a number is out of range.
    """
    stored: list[int] = tensor(tensors, name, (count,), "whole").tolist()
    if stored and not (low <= min(stored) and max(stored) <= high):
        raise ValueError(
            f"{name!r} reaches from {min(stored)} to {max(stored)}; expected {low} to {high}"
        )
    return stored


def copy_into(
    targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str = ""
) -> None:
    """Copy stored tensors into targets of the same names and shapes; check all before writing any.

    Args:
        targets: name -> the tensor to write into.
        tensors: the state's tensors.
        prefix: of the stored names.

    Raises:
        KeyError, ValueError: one is missing, or of another shape.
    """
    kinds: dict[str, Kind] = {
        name: "float" if target.is_floating_point() else "whole" for name, target in targets.items()
    }
    stored = {
        name: tensor(tensors, prefix + name, target.shape, kinds[name])
        for name, target in targets.items()
    }
    for name, target in targets.items():
        target.copy_(stored[name])


def value(values: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return the plain value of this name.

    Raises:
        KeyError: there is none.
        ValueError: it is of another type.
    """
    if name not in values:
        raise KeyError(f"{name!r} is missing")
    stored = values[name]
    if not isinstance(stored, kind):
        raise ValueError(f"{name!r} is of type {type(stored).__name__}; expected {kind.__name__}")
    return stored


def number(
    values: Mapping[str, Any], name: str, low: float = -math.inf, high: float = math.inf
) -> float:
    """Return a finite number from low to high.

    Raises:
        KeyError, ValueError: there is no such value, or it is no such number.
    """
    stored = value(values, name, object)
    if isinstance(stored, bool) or not isinstance(stored, int | float):
        raise ValueError(f"{name!r} is of type {type(stored).__name__}; expected a number")
    if not math.isfinite(float(stored)) or not low <= stored <= high:
        raise ValueError(
            f"{name!r} is {str(stored)[:40]}; expected a number from {low:g} to {high:g}"
        )
    return stored


def whole(stored: Any, name: str, low: int, high: int) -> int:
    """Return a value, after a check that it is a whole number from low to high.

    Args:
        stored: the value.
        name: of the list or mapping it is from, for the error.
        low, high: the bounds.

    Raises:
        ValueError: it is no such number.
    """
    if isinstance(stored, bool) or not isinstance(stored, int) or not low <= stored <= high:
        raise ValueError(
            f"{name!r} has {str(stored)[:40]!r} in it; expected a whole number from {low} to {high}"
        )
    return stored


def same(values: Mapping[str, Any], name: str, wanted: Any) -> None:
    """Check that a value is the one wanted.

    Raises:
        KeyError, ValueError: there is no such value, or it is another.
    """
    stored = value(values, name, type(wanted))
    if stored != wanted:
        raise ValueError(f"{name!r} is {str(stored)[:40]}; here it is {wanted}")


def texts(values: Mapping[str, Any], name: str, count: int | None = None) -> list[str]:
    """Return a list of texts; of `count` texts, unless None.

    Raises:
        KeyError, ValueError: there is no such value, or it is no such list.
    """
    stored = rows(values, name, count)
    if not all(isinstance(each, str) for each in stored):
        raise ValueError(f"{name!r} has something other than text in it")
    return stored


def rows(values: Mapping[str, Any], name: str, count: int | None = None) -> list[Any]:
    """Return a list of values; of `count` values, unless None.

    Raises:
        KeyError, ValueError: there is no such value, or it is no such list.
    """
    stored = value(values, name, list | tuple)  # type: ignore[arg-type]
    if count is not None and len(stored) != count:
        raise ValueError(f"{name!r} has {len(stored)} entries; expected {count}")
    return list(stored)
