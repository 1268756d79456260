"""`MethodConfig`: what a method can be told. A dataclass to dict and back; unknown keys are reported, never eaten."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from errata.errors import ConfigError, suggest


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Settings every method has. A method's own dataclass adds its own.

    Attributes:
        layer: block whose value matrix is edited, counted from 0; None derives it from the model's depth.
        seed: everything random (masks, prefixes, sampling) follows from it.
        chat_template: put prompts into the tokenizer's chat template; None means "when the tokenizer has one".
    """

    method: ClassVar[str] = ""

    layer: int | None = None
    seed: int = 0
    chat_template: bool | None = None

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
                raise ConfigError(f"{cls.method or cls.__name__} has no setting {name!r}.{suggest(name, known)}")
            given[name] = _read(name, value, hints[name])
        return cls(**given)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ConfigError` unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must lie between {low} and {high}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless value is among the choices."""
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it is one of {', '.join(choices)}.{suggest(value, choices)}")


def _read(name: str, value: Any, hint: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) is not typing.Literal else ()
    kinds = options or (hint,)
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null") and type(None) in kinds):
        if type(None) in kinds:
            return None
        raise ConfigError(f"{name} cannot be empty.")
    for kind in kinds:
        if kind is bool and isinstance(value, bool | str):
            if isinstance(value, bool):
                return value
            if value.lower() in ("true", "yes", "on", "1"):
                return True
            if value.lower() in ("false", "no", "off", "0"):
                return False
        elif kind is int and not isinstance(value, bool):
            try:
                if float(value) == int(float(value)):
                    return int(float(value))
            except (TypeError, ValueError):
                continue
        elif kind is float and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError):
                continue
        elif (kind is str and isinstance(value, str)) or (typing.get_origin(kind) is typing.Literal and value in typing.get_args(kind)):
            return value
    names = " or ".join(getattr(k, "__name__", str(k)).replace("NoneType", "none") for k in kinds)
    raise ConfigError(f"{name} is {value!r}; expected {names}.")
