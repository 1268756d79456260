"""Published settings: every row has a source and can be used; a model finds its row."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from errata import method_class, method_names
from errata.errors import UnknownNameError
from errata.presets import Preset, preset, preset_for, presets

ROWS = presets()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method}-{row.name}")
def test_every_row_is_usable_and_says_where_it_is_from(row: Preset) -> None:
    assert row.method in method_names() and len(row.source) > 20 and "model_type" in row.match
    config = method_class(row.method).config_class.from_dict(row.settings)
    assert {name: config.to_dict()[name] for name in row.settings} == row.settings
    made = AutoConfig.for_model(
        **{"num_attention_heads": 8, **row.match}
    )  # so many go into every width
    assert row.fits(made) and row.settings.get("layer", 0) < made.num_hidden_layers
    if row.method == "wise":  # published margins belong to the published score
        assert row.settings["score"] == "activated"


def test_names_are_one_of_a_kind() -> None:
    assert len({(row.method, row.name) for row in ROWS}) == len(ROWS)
    assert {row.method for row in ROWS} >= {"wise", "ft", "mend", "lora"}


@pytest.mark.parametrize(
    "method, model, name",
    [
        (
            "wise",
            {
                "model_type": "llama",
                "num_hidden_layers": 32,
                "hidden_size": 4096,
                "vocab_size": 32000,
            },
            "llama-2-7b",
        ),
        ("wise", {"model_type": "gptj"}, "gpt-j-6b"),
        ("ft", {"model_type": "gptj"}, "gpt-j-6b"),
        ("wise", {"model_type": "gpt2"}, "gpt2"),
        ("ft", {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600}, "gpt2-xl-constrained"),
    ],
)
def test_auto_finds_the_row_of_a_model(method: str, model: dict[str, Any], name: str) -> None:
    assert preset_for(method, AutoConfig.for_model(**model)).name == name


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(UnknownNameError, match="mistral-7b"):
        preset("wise", "mistral7b")
    with pytest.raises(UnknownNameError, match="Leave --preset out"):
        preset_for("wise", AutoConfig.for_model("llama", num_hidden_layers=4))
