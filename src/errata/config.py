"""`MethodConfig`: what a method can be told. A dataclass to dict and back; unknown keys are reported, never eaten."""

from __future__ import annotations

import contextlib
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
        end_token: answers are learned with the model's end token behind them; without, it learns no place to stop.
    """

    method: ClassVar[str] = ""

    layer: int | None = None
    seed: int = 0
    chat_template: bool | None = None
    end_token: bool = True

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
    """The value in the type that the hint names; texts, as a command line gives them, are parsed."""
    literal = typing.get_origin(hint) is typing.Literal
    kinds = (hint,) if literal else typing.get_args(hint) or (hint,)
    if type(None) in kinds and (value is None or str(value).lower() in ("none", "null")):
        return None
    for kind in kinds:
        with contextlib.suppress(TypeError, ValueError, OverflowError, KeyError):
            return _as(kind, value)
    choices = typing.get_args(hint) if literal else [getattr(kind, "__name__", str(kind)) for kind in kinds]
    raise ConfigError(f"{name} is {value!r}; expected {' or '.join(choices).replace('NoneType', 'none')}.")


def _as(kind: Any, value: Any) -> Any:
    """The value as `kind`; raises one of the conversion errors where it is not."""
    if typing.get_origin(kind) is typing.Literal:
        return {choice: choice for choice in typing.get_args(kind)}[value]
    if kind is bool:
        return value if isinstance(value, bool) else _SWITCHES[value.lower() if isinstance(value, str) else value]
    if isinstance(value, bool) or kind not in (int, float, str):
        raise TypeError(kind)
    if kind is int:
        whole = int(float(value))
        if whole != float(value):
            raise ValueError(value)
        return whole
    if kind is str and not isinstance(value, str):
        raise TypeError(kind)
    return kind(value)


_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
