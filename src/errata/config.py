"""`MethodConfig`: what a method can be told. A dataclass to dict and back; unknown keys are
reported, never eaten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import types
import typing
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Self

from errata.errors import ConfigError, quoted, suggest

LARGEST = 10**9
"""No setting is larger."""
SEEDS = 2**32
"""So many seeds there are."""
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, ends included; metadata of a setting's type."""

    low: float = -LARGEST
    high: float = LARGEST


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Settings every method has. A method's own dataclass adds its own.

    A setting's type says which values it takes: a number with a `Range`, one of a `Literal`'s
    texts, or None. A subclass that gives a setting another default repeats its type.

    Attributes:
        layer: block whose value matrix is edited, counted from 0; None derives it from the model's
            depth.
        seed: everything random (masks, prefixes, sampling) follows from it.
        chat_template: put prompts into the tokenizer's chat template; None means "when the
            tokenizer has one".
        end_token: answers are learned with the model's end token behind them; without, it learns no
            place to stop.
    """

    method: ClassVar[str] = ""

    layer: NonNegativeInt | None = None
    seed: Annotated[int, Range(0, SEEDS - 1)] = 0
    chat_template: bool | None = None
    end_token: bool = True

    def __post_init__(self) -> None:
        """Check each setting against its type.

        Raises:
            ConfigError: a number is out of its range or not finite, or a text is not a choice.
        """
        check_seed(self.seed)
        hints = typing.get_type_hints(type(self), include_extras=True)
        for each in dataclasses.fields(self):
            check_setting(each.name, getattr(self, each.name), hints[each.name])

    def to_dict(self) -> dict[str, Any]:
        """All settings and the method's name, ready for JSON."""
        return {"method": self.method, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from plain values, as read from JSON or given on a command line (texts are parsed).

        Raises:
            ConfigError: an unknown key (with a suggestion) or a value of the wrong type.
        """
        hints = typing.get_type_hints(cls)
        known = {f.name for f in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for name, value in data.items():
            if name == "method":
                continue
            if name not in known:
                raise ConfigError(
                    f"{cls.method or cls.__name__} has no setting {quoted(name)}.{suggest(name, known)}"
                )
            given[name] = read_value(name, value, hints[name])
        return cls(**given)


def check_setting(name: str, value: Any, hint: Any) -> None:
    """Raise `ConfigError` unless value is one that the hint allows: a choice, a number in range."""
    kinds = _members(hint)
    if value is None and type(None) in kinds:
        return
    for kind in kinds:
        origin = typing.get_origin(kind)
        if origin is Literal:
            check_choice(name, value, typing.get_args(kind))
        elif origin is Annotated:
            limits = kind.__metadata__[0]
            check_range(name, value, limits.low, limits.high)
        elif kind in (int, float):
            check_range(name, value, -LARGEST, LARGEST)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ConfigError` unless value is finite and low <= value <= high."""
    if not low <= value <= high or math.isinf(value):
        most = LARGEST if high == math.inf else high
        raise ConfigError(f"{name} is {quoted(value)}; it must lie between {low} and {most}.")


def check_seed(seed: int) -> None:
    """Raise `ConfigError` unless every generator of random numbers takes this seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise ConfigError(
            f"seed is {quoted(seed)}; it must be a whole number from 0 to {SEEDS - 1}."
        )


def check_dtype(dtype: str) -> None:
    """Raise `ConfigError` unless a model can be loaded in the type of this name, or as saved
    (`auto`).
    """
    import torch

    found = getattr(torch, dtype, None) if dtype.isidentifier() else None
    if dtype != "auto" and not (
        isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1
    ):
        raise ConfigError(f"dtype {quoted(dtype)} is unknown; try float32, bfloat16 or float16.")


def check_device(device_map: str | None) -> None:
    """Raise `ConfigError` unless there is such a device here, or it is left to transformers which
    (`auto`).
    """
    if device_map is None:
        return
    if find_spec("accelerate") is None:
        raise ConfigError(
            "a device map needs accelerate: `pip install accelerate`; left out, the model is on the CPU."
        )
    if device_map in DEVICE_MAPS:
        return
    import torch

    try:
        device = torch.device(device_map)
    except RuntimeError:
        known = ", ".join([*DEVICE_MAPS, "cpu", "cuda", "cuda:1"])
        raise ConfigError(
            f"device_map is {quoted(device_map)}; it is a device or a way to choose one: {known}."
        ) from None
    count = getattr(getattr(torch, device.type, None), "device_count", int)()
    if (
        not 0 <= (device.index or 0) < count
    ):  # an index that torch cannot hold becomes a negative one
        raise ConfigError(
            f"device_map is {device_map!r}, but torch finds {count} {device.type} devices here; leave it out for the CPU."
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless value is among the choices."""
    if value not in choices:
        near = suggest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{name} is {quoted(value)}; it is one of {', '.join(choices)}.{near}")


def read_value(name: str, value: Any, hint: Any) -> Any:
    """The value in the type that the hint names; texts, as a command line gives them, are parsed.

    Raises:
        ConfigError: it cannot be one of that type.
    """
    kinds = _members(hint)
    if type(None) in kinds and (value is None or str(value).lower() in ("none", "null")):
        return None
    for kind in kinds:
        with contextlib.suppress(TypeError, ValueError, OverflowError, KeyError):
            return _as(kind, value)
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            check_choice(name, value, typing.get_args(kind))
    names = [kind.__name__.replace("NoneType", "none") for kind in kinds]
    raise ConfigError(f"{name} is {quoted(value)}; expected {' or '.join(names)}.")


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, itself alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _as(kind: Any, value: Any) -> Any:
    """The value as `kind`; raises one of the conversion errors where it is not."""
    if typing.get_origin(kind) is Literal:
        return {choice: choice for choice in typing.get_args(kind)}[value]
    if kind is bool:
        return (
            value
            if isinstance(value, bool)
            else _SWITCHES[value.lower() if isinstance(value, str) else value]
        )
    if isinstance(value, bool) or kind not in (int, float, str):
        raise TypeError(kind)
    if kind is int:
        with contextlib.suppress(ValueError, TypeError):
            return int(value) if isinstance(value, str) else operator.index(value)
        whole = int(float(value))  # 1e3
        if whole != float(value):
            raise ValueError(value)
        return whole
    if kind is str and not isinstance(value, str):
        raise TypeError(kind)
    return kind(value)


_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
