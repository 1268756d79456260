"""Settings: read from plain values, unknown ones reported, ranges checked."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import ClassVar

import pytest

import errata
from errata import FineTuningConfig, WiseConfig
from errata.config import MethodConfig, check_device, check_dtype
from errata.errors import ConfigError


@pytest.mark.parametrize("cls", [WiseConfig, FineTuningConfig])
def test_to_dict_and_back(cls: type) -> None:
    config = cls(seed=3, layer=2)
    assert cls.from_dict(config.to_dict()) == config


def test_texts_are_parsed() -> None:
    read = WiseConfig.from_dict(
        {
            "steps": "7",
            "lr": "none",
            "alpha": "2.5",
            "chat_template": "no",
            "variant": "retrieve",
            "score": "linear",
        }
    )
    assert (read.steps, read.lr, read.alpha, read.chat_template) == (7, None, 2.5, False)
    assert (read.variant, read.score) == ("retrieve", "linear")


def test_a_renamed_setting_is_read_by_its_earlier_name() -> None:
    @dataclasses.dataclass(frozen=True)
    class Renamed(MethodConfig):
        renamed: ClassVar[Mapping[str, str]] = {"mentioned": "min_overlap"}
        min_overlap: float = 0.7

    assert Renamed.from_dict({"mentioned": "0.5"}) == Renamed(min_overlap=0.5)
    assert Renamed.from_dict({"mentioned": 0.5, "min_overlap": 0.6}).min_overlap == 0.6
    assert Renamed.from_dict({**Renamed().to_dict(), "mentioned": 0.4}).min_overlap == 0.4
    assert set(Renamed().to_dict()) == {"method", "min_overlap"} | set(MethodConfig().to_dict())
    with pytest.raises(ConfigError, match="min_overlap is 'most'"):
        Renamed.from_dict({"mentioned": "most"})
    with pytest.raises(ConfigError, match="has no setting 'mentioned'"):
        MethodConfig.from_dict({"mentioned": 0.5})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"step": 3}, "no setting 'step'. Did you mean 'steps'?"),
        ({"steps": "many"}, "steps is 'many'; expected int"),
        ({"steps": 2.5}, "expected int"),
        ({"steps": "inf"}, "expected int"),
        ({"steps": True}, "expected int"),
        ({"steps": None}, "expected int"),
        ({"lr": "fast"}, "expected float or none"),
        ({"chat_template": "perhaps"}, "expected bool or none"),
        ({"variant": "mergee"}, "expected merge or retrieve"),
        ({"pool": "median"}, "mean, max, last"),
        ({"score": 3}, "expected str"),
        ({"mask_ratio": 0}, "must lie between"),
        ({"merge_method": "tie"}, "Did you mean 'ties'?"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WiseConfig.from_dict(given)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", errata.method_names())
def test_every_number_of_every_method_is_finite_and_in_a_range(name: str) -> None:
    """From a file, a command line, or in Python."""
    config = errata.method_class(name).config_class
    hints = typing.get_type_hints(config)
    kinds = {
        each.name: {hints[each.name], *typing.get_args(hints[each.name])}
        for each in dataclasses.fields(config)
    }
    numbers = [setting for setting, found in kinds.items() if found & {int, float}]
    assert {"seed", "layer"} <= set(numbers)
    for setting in numbers:
        given = (
            math.inf,
            -math.inf,
            math.nan,
            10**23,
            -(10**23),
            "1e400",
            "-inf",
            "nan",
            "9" * 23,
            "9" * 5000,
            True,
            [],
        )
        for wrong in given:
            with pytest.raises(ConfigError, match=setting):
                config.from_dict({setting: wrong})
        for wrong in (math.inf, math.nan, 10**23, -(10**23)):
            with pytest.raises(ConfigError):
                config(**{setting: wrong})


def test_whole_numbers_are_read_to_the_last_digit() -> None:
    assert WiseConfig.from_dict({"seed": "4294967295"}).seed == 2**32 - 1
    assert WiseConfig.from_dict({"steps": "1e2", "seed": 7.0}).steps == 100
    for wrong in ("4294967296", -1, 1.5):
        with pytest.raises(ConfigError, match="seed"):
            WiseConfig.from_dict({"seed": wrong})


def test_devices_and_types_are_checked_before_a_model_is_loaded() -> None:
    for fine in (None, "auto", "balanced", "cpu"):
        check_device(fine)
    for fine in ("auto", "float32", "bfloat16", "float16", "float64"):
        check_dtype(fine)
    for wrong in ("cuda:999", "gpu", "", "cpu:1", "meta", "cuda:-1", "0"):
        with pytest.raises(ConfigError, match="device_map is"):
            check_device(wrong)
    for wrong in ("", "int8", "float8_e4m3fn", "complex64", "__class__", "nn", "\ud800"):
        with pytest.raises(ConfigError, match="dtype"):
            check_dtype(wrong)
