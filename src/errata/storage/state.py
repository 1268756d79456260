"""What a saved state must be like: tensors and plain values are taken from it by name, and checked.
It knows no method.

What is wrong is a `KeyError` (missing) or a `ValueError` (not what it must be), which says the name
and what was expected.
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
    """The tensor of this name.

    Args:
        shape: of it; None where a side may have any length.
        kind: `float`, of any precision; `whole` numbers; or `bits`, which are bytes.

    Raises:
        KeyError: there is none.
        ValueError: it is of another shape or kind.
    """
    if name not in tensors:
        raise KeyError(f"the tensor {name!r} is missing")
    found = tensors[name]
    fits = len(found.shape) == len(shape) and all(
        want in (None, side) for side, want in zip(found.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"{name!r} is of shape {tuple(found.shape)} instead of ({wanted})")
    good = {
        "float": found.is_floating_point(),
        "whole": found.dtype in _WHOLE,
        "bits": found.dtype == torch.uint8,
    }[kind]
    if not good:
        raise ValueError(f"{name!r} is of type {found.dtype}; expected {kind}")
    return found


def numbers(
    tensors: Mapping[str, Tensor], name: str, count: int | None, low: int, high: int
) -> list[int]:
    """The whole numbers of a tensor (count,), each from low to high.

    Raises:
        KeyError, ValueError: there is no such tensor, or a number is out of range.
    """
    found: list[int] = tensor(tensors, name, (count,), "whole").tolist()
    if found and not (low <= min(found) and max(found) <= high):
        raise ValueError(
            f"{name!r} reaches from {min(found)} to {max(found)}; expected {low} to {high}"
        )
    return found


def copy_into(
    wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], prefix: str = ""
) -> None:
    """Copy tensors of the same names and shapes into those that are there; all are checked before
    one is written.

    Raises:
        KeyError, ValueError: one is missing, or of another shape.
    """
    kinds: dict[str, Kind] = {
        name: "float" if now.is_floating_point() else "whole" for name, now in wanted.items()
    }
    found = {
        name: tensor(tensors, prefix + name, now.shape, kinds[name]) for name, now in wanted.items()
    }
    for name, now in wanted.items():
        now.copy_(found[name])


def value(values: Mapping[str, Any], name: str, kind: type) -> Any:
    """The plain value of this name.

    Raises:
        KeyError: there is none.
        ValueError: it is of another type.
    """
    if name not in values:
        raise KeyError(f"{name!r} is missing")
    found = values[name]
    if not isinstance(found, kind):
        raise ValueError(f"{name!r} is of type {type(found).__name__}; expected {kind.__name__}")
    return found


def number(
    values: Mapping[str, Any], name: str, low: float = -math.inf, high: float = math.inf
) -> float:
    """A finite number from low to high.

    Raises:
        KeyError, ValueError: there is no such value, or it is none.
    """
    found = value(values, name, object)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{name!r} is of type {type(found).__name__}; expected a number")
    if not math.isfinite(float(found)) or not low <= found <= high:
        raise ValueError(
            f"{name!r} is {str(found)[:40]}; expected a number from {low:g} to {high:g}"
        )
    return found


def whole(found: Any, name: str, low: int, high: int) -> int:
    """A whole number from low to high.

    Raises:
        ValueError: it is none.
    """
    if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
        raise ValueError(
            f"{name!r} has {str(found)[:40]!r} in it; expected a whole number from {low} to {high}"
        )
    return found


def same(values: Mapping[str, Any], name: str, wanted: Any) -> None:
    """Make sure that a value is what it must be here.

    Raises:
        KeyError, ValueError: there is no such value, or it is another.
    """
    found = value(values, name, type(wanted))
    if found != wanted:
        raise ValueError(f"{name!r} is {str(found)[:40]}; here it is {wanted}")


def texts(values: Mapping[str, Any], name: str, count: int | None = None) -> list[str]:
    """A list of so many texts.

    Raises:
        KeyError, ValueError: there is no such value, or it is none.
    """
    found = rows(values, name, count)
    if not all(isinstance(each, str) for each in found):
        raise ValueError(f"{name!r} has something other than text in it")
    return found


def rows(values: Mapping[str, Any], name: str, count: int | None = None) -> list[Any]:
    """A list of so many values.

    Raises:
        KeyError, ValueError: there is no such value, or it is none.
    """
    found = value(values, name, list | tuple)  # type: ignore[arg-type]
    if count is not None and len(found) != count:
        raise ValueError(f"{name!r} has {len(found)} entries; expected {count}")
    return list(found)
