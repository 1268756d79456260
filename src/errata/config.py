"""`MethodConfig`: what a method can be told. A dataclass to dict and back; unknown keys are
reported, never eaten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import typing
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, ClassVar, Self

from errata.errors import ConfigError, quoted, suggest

LARGEST = 10**9
"""No setting is larger."""
SEEDS = 2**32
"""So many seeds there are."""
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Settings every method has. A method's own dataclass adds its own.

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
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Earlier names of settings, which `from_dict` still reads: earlier name -> name."""

    layer: int | None = None
    seed: int = 0
    chat_template: bool | None = None
    end_token: bool = True

    def __post_init__(self) -> None:
        """Check what holds for every setting: numbers are finite and no larger than what could be
        meant.
        """
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and each.name != "seed"
            ):
                check_range(each.name, value, -LARGEST, LARGEST)
        check_seed(self.seed)
        if self.layer is not None:
            check_range("layer", self.layer, 0, LARGEST)

    def to_dict(self) -> dict[str, Any]:
        """All settings and the method's name, ready for JSON."""
        return {"method": self.method, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from plain values, as read from JSON or given on a command line (texts are parsed).

        A setting given by two names, its own and an earlier one, takes the later value.

        Raises:
            ConfigError: an unknown key (with a suggestion) or a value of the wrong type.
        """
        hints = typing.get_type_hints(cls)
        known = {f.name for f in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for key, value in data.items():
            if key == "method":
                continue
            name = cls.renamed.get(key, key)
            if name not in known:
                raise ConfigError(
                    f"{cls.method or cls.__name__} has no setting {quoted(name)}.{suggest(name, known)}"
                )
            given[name] = read_value(name, value, hints[name])
        return cls(**given)


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


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless value is among the choices."""
    if value not in choices:
        raise ConfigError(
            f"{name} is {quoted(value)}; it is one of {', '.join(choices)}.{suggest(value, choices)}"
        )


def read_value(name: str, value: Any, hint: Any) -> Any:
    """The value in the type that the hint names; texts, as a command line gives them, are parsed.

    Raises:
        ConfigError: it cannot be one of that type.
    """
    literal = typing.get_origin(hint) is typing.Literal
    kinds = (hint,) if literal else typing.get_args(hint) or (hint,)
    if type(None) in kinds and (value is None or str(value).lower() in ("none", "null")):
        return None
    for kind in kinds:
        with contextlib.suppress(TypeError, ValueError, OverflowError, KeyError):
            return _as(kind, value)
    choices = (
        typing.get_args(hint)
        if literal
        else [getattr(kind, "__name__", str(kind)) for kind in kinds]
    )
    raise ConfigError(
        f"{name} is {quoted(value)}; expected {' or '.join(choices).replace('NoneType', 'none')}."
    )


def _as(kind: Any, value: Any) -> Any:
    """The value as `kind`; raises one of the conversion errors where it is not."""
    if typing.get_origin(kind) is typing.Literal:
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
