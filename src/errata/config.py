"""`MethodConfig`: a method's settings as a dataclass of plain values; and checks of settings."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import types
import typing
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from errata.errors import ConfigError, quoted, suggest

LARGEST = 10**9
"""The largest value of a numeric setting."""
SEEDS = 2**32
"""The number of seeds, from 0."""
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
    """The settings that every method has; each method's own dataclass adds its own.

    A setting's type says which values it takes: a number with a `Range`, one of a `Literal`'s
    texts, or None. A subclass that gives a setting another default repeats its type.

    Attributes:
        layer: block whose value matrix is edited, counted from 0; None derives it from the model's
            depth.
        seed: of everything random: masks, prefixes, sampling.
        chat_template: put prompts into the tokenizer's chat template; None means "when the
            tokenizer has one".
        end_token: learn answers with the model's end token after them; without it, the model does
            not learn where to stop.

    Raises:
        ConfigError: a value is out of its range.
    """

    method: ClassVar[str] = ""
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})
    dropped: ClassVar[frozenset[str]] = frozenset()
    """Earlier names of settings, which `from_dict` still reads: earlier name -> name."""

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
        """Return all settings and the method's name, ready for JSON."""
        return {"method": self.method, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from plain values, as read from JSON or given on a command line as texts.

        A setting given by two names, its own and an earlier one, takes the later value.

        Raises:
            ConfigError: an unknown key (with a suggestion) or a value of the wrong type.
        """
        hints = typing.get_type_hints(cls)
        known = {each.name for each in dataclasses.fields(cls)}
        settings: dict[str, Any] = {}
        for key, value in data.items():
            if key == "method":
                continue
            name = cls.renamed.get(key, key)
            if name in cls.dropped:
                continue
            if name not in known:
                owner = cls.method or cls.__name__
                raise ConfigError(f"{owner} has no setting {quoted(name)}.{suggest(name, known)}")
            settings[name] = read_value(name, value, hints[name])
        return cls(**settings)


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
        high = LARGEST if high == math.inf else high
        raise ConfigError(f"{name} is {quoted(value)}; it must lie between {low} and {high}.")


def check_seed(seed: int) -> None:
    """Raise `ConfigError` unless a seed is a whole number that every random generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise ConfigError(
            f"seed is {quoted(seed)}; it must be a whole number from 0 to {SEEDS - 1}."
        )


def check_dtype(dtype: str) -> None:
    """Raise `ConfigError` unless a model can be loaded in this dtype; "auto" is the saved one."""
    import torch

    kind = getattr(torch, dtype, None) if dtype.isidentifier() else None
    if dtype != "auto" and not (
        isinstance(kind, torch.dtype) and kind.is_floating_point and kind.itemsize > 1
    ):
        raise ConfigError(f"dtype {quoted(dtype)} is unknown; try float32, bfloat16 or float16.")


def check_device(device_map: str | None) -> None:
    """Raise `ConfigError` unless this is a device of this machine, or one of `DEVICE_MAPS`.

    By the names in `DEVICE_MAPS`, accelerate chooses the devices.
    """
    if device_map is None:
        return
    if find_spec("accelerate") is None:
        raise ConfigError(
            "a device map needs accelerate: `pip install accelerate`; "
            "left out, the model is on the CPU."
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
    if not 0 <= (device.index or 0) < count:  # torch makes too large an index negative
        raise ConfigError(
            f"device_map is {device_map!r}, but torch finds {count} {device.type} devices here; "
            "leave it out for the CPU."
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless value is among the choices."""
    if value not in choices:
        near = suggest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{name} is {quoted(value)}; it is one of {', '.join(choices)}.{near}")


def read_value(name: str, value: Any, hint: Any) -> Any:
    """Convert a value to the type of a hint; texts, as on a command line, are parsed.

    Args:
        name: the setting, for the error.
        value: any plain value.
        hint: bool, int, float, str, a `Literal`, or a union of them and None.

    Raises:
        ConfigError: it is no value of that type.
    """
    kinds = _members(hint)
    if type(None) in kinds and (value is None or str(value).lower() in ("none", "null")):
        return None
    for kind in kinds:
        with contextlib.suppress(TypeError, ValueError, OverflowError, KeyError):
            return _convert(kind, value)
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            check_choice(name, value, typing.get_args(kind))
    names = [kind.__name__.replace("NoneType", "none") for kind in kinds]
    raise ConfigError(f"{name} is {quoted(value)}; expected {' or '.join(names)}.")


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type, itself alone."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _convert(kind: Any, value: Any) -> Any:
    """The value as a `kind`.

    Raises:
        TypeError, ValueError, OverflowError, KeyError: it is none.
    """
    if typing.get_origin(kind) is Literal:
        return {choice: choice for choice in typing.get_args(kind)}[value]
    if kind is bool:
        if isinstance(value, bool):
            return value
        return _SWITCHES[value.lower() if isinstance(value, str) else value]
    if isinstance(value, bool) or kind not in (int, float, str):
        raise TypeError(kind)
    if kind is int:
        with contextlib.suppress(ValueError, TypeError):
            return int(value) if isinstance(value, str) else operator.index(value)
        whole = int(float(value))  # such as 1e3
        if whole != float(value):
            raise ValueError(value)
        return whole
    if kind is str and not isinstance(value, str):
        raise TypeError(kind)
    return kind(value)


_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
