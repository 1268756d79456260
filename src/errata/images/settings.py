"""The settings of both ways to edit what a pipeline draws."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from errata.config import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    check_setting,
    read_value,
)
from errata.errors import ConfigError, quoted, suggest

TEMPLATES = (
    "{}",
    "a photo of {}",
    "an image of {}",
    "a picture of {}",
    "a drawing of {}",
    "a painting of {}",
    "a close-up of {}",
)
"""Texts around a prompt: the bare one, and photo-style ones as the publication has them."""


@dataclass(frozen=True)
class ValueSettings:
    """How the vector is found that makes a prompt be read as its target.

    Attributes:
        layer: block whose output matrix counts, from 0; None: three quarters of the way up.
        steps: Adam steps per edit, at most.
        lr: Adam's learning rate.
        weight_decay: weight of |delta| / |v|^2.
        clamp: the largest |delta|, in multiples of |v|.
        stop: Adam stops when the target's share among the candidates is above this.

    Raises:
        ConfigError: a value is out of its range.
    """

    layer: NonNegativeInt | None = None
    steps: PositiveInt = 100
    lr: NonNegativeFloat = 0.05
    weight_decay: NonNegativeFloat = 0.01
    clamp: NonNegativeFloat = 4.0
    stop: Fraction = 0.99

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for each in dataclasses.fields(self):
            check_setting(each.name, getattr(self, each.name), hints[each.name])

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from plain values, as read from JSON or given on a command line as texts.

        Raises:
            ConfigError: an unknown key (with a suggestion) or a value of the wrong type.
        """
        hints = typing.get_type_hints(cls)
        for name in data:
            if name not in hints:
                raise ConfigError(f"there is no setting {quoted(name)}.{suggest(name, hints)}")
        return cls(**{name: read_value(name, value, hints[name]) for name, value in data.items()})


@dataclass(frozen=True)
class WeightSettings(ValueSettings):
    """How the vector is written into the weights.

    Attributes:
        texts: made of the tokenizer's own words, for the second moment of the keys.
        corpus: a text file for the second moment instead, one text a line.
        ridge: added to the second moment before it is inverted, as a share of its mean eigenvalue.
        seed: of the texts.
    """

    texts: PositiveInt = 4096
    corpus: str | None = None
    ridge: NonNegativeFloat = 1e-3
    seed: NonNegativeInt = 0
