"""Settings: read from plain values, unknown ones reported, ranges checked."""

from __future__ import annotations

import pytest

from errata import FineTuningConfig, WiseConfig
from errata.errors import ConfigError


@pytest.mark.parametrize("cls", [WiseConfig, FineTuningConfig])
def test_to_dict_and_back(cls: type) -> None:
    config = cls(seed=3, layer=2)
    assert cls.from_dict(config.to_dict()) == config


def test_texts_are_parsed() -> None:
    read = WiseConfig.from_dict(
        {"steps": "7", "lr": "none", "alpha": "2.5", "chat_template": "no", "variant": "retrieve", "score": "linear"}
    )
    assert (read.steps, read.lr, read.alpha, read.chat_template) == (7, None, 2.5, False)
    assert (read.variant, read.score) == ("retrieve", "linear")


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
