"""Bottleneck adapters against h + W_up s(W_down h + b_down) + b_up in float64."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, logits_of
from families import tiny_model
from grid import grid

from errata.errors import ConfigError
from errata.lm.hooks import replace_output
from errata.methods.association.adapter import AdapterConfig

ACTIVATIONS = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}


@grid(
    "family activation",
    [(family, each) for family in ("llama", "gpt2", "opt", "falcon") for each in ACTIVATIONS],
    lambda family, activation: {family, activation},
)
def test_the_papers_formula(family, activation):
    model = edit_model(family, "adapter", EDITS[:2], activation=activation, reduction=8, lr=0.05)
    (path,) = model.method.paths
    tensors = {
        name.removeprefix(f"{path}."): t.double() for name, t in model.method.state()[0].items()
    }
    assert tensors["down"].shape == (4, 32) and tensors["up"].abs().max() > 0

    def behind(h):
        inner = ACTIVATIONS[activation](h @ tensors["down"].T + tensors["down_bias"])
        return h + inner @ tensors["up"].T + tensors["up_bias"]

    plain = tiny_model(family).double()
    ids = torch.tensor([model.lm.encode_prompt(PROMPTS[2])])
    with torch.no_grad(), replace_output(plain.get_submodule(path), behind):
        expected = plain(ids).logits
    with torch.no_grad():
        assert (model(ids).logits.double() - expected).abs().max() < 1e-4
        with model.disable_edits():
            assert (model(ids).logits.double() - expected).abs().max() > 1e-2


def test_untaught_it_is_the_base_model_bit_for_bit():
    model = edit_model("gpt2", "adapter", layer=None)
    expected = logits_of(model, model.lm)
    with model.method.begin().on(model.lm):
        assert torch.equal(logits_of(model, model.lm), expected)


def test_bad_settings():
    with pytest.raises(ConfigError, match="activation is 'rely'"):
        AdapterConfig(activation="rely")
