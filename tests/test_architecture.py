"""Every family's blocks, value matrices and head are where `errata.lm.architecture` says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from families import FAMILIES_TINY, HIDDEN, N_LAYERS, OUTSIDERS, TWELVE, tiny_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from errata.errors import ArchitectureError, ConfigError, UsageError
from errata.lm.architecture import FAMILIES, architecture_of, infer_architecture
from errata.lm.hooks import capture_input, capture_output
from errata.lm.weights import add_to_weight, is_transposed, read_bias, read_weight

TOKENS = torch.arange(20, 34).reshape(2, 7)
every_family = pytest.mark.parametrize("family", FAMILIES_TINY)


def test_every_family_of_the_table_has_a_tiny_model():
    assert set(FAMILIES) == {*FAMILIES_TINY, "gemma3"}
    assert set(TWELVE) < set(FAMILIES_TINY) and len(TWELVE) == 12


@every_family
def test_the_table_and_the_structure_say_the_same(family):
    model = tiny_model(family)
    found = architecture_of(model)
    assert found == infer_architecture(model)
    assert found.model_type == family
    assert (found.blocks, found.w_out, found.head) == FAMILIES[family]
    assert (found.n_layers, found.hidden_size, found.d_out) == (N_LAYERS, HIDDEN, HIDDEN)
    assert found.d_in != HIDDEN
    assert found.head_module(model) is model.get_output_embeddings()
    assert model.get_submodule(found.value_path(2)) is found.value_module(model, 2)
    assert found.value_module(model, 2) in set(found.block(model, 2).modules())


@every_family
def test_values_are_keys_through_the_weight(family):
    model = tiny_model(family)
    module = architecture_of(model).value_module(model, 1)
    with torch.no_grad(), capture_input(module) as keys, capture_output(module) as values:
        model(input_ids=TOKENS)
    expected = keys[0] @ read_weight(module).T
    bias = read_bias(module)
    if bias is not None:
        assert bias.shape == (HIDDEN,) and bias.abs().sum() > 0
        expected = expected + bias
    torch.testing.assert_close(values[0], expected, atol=1e-5, rtol=1e-5)


@every_family
def test_a_change_reaches_the_model_and_comes_off(family):
    model = tiny_model(family)
    found = architecture_of(model)
    module = found.value_module(model, found.default_layer())
    before, weight = read_weight(module).clone(), read_weight(module)
    assert weight.shape == (found.d_out, found.d_in)
    assert weight.data_ptr() == module.weight.data_ptr() and not weight.requires_grad
    delta = torch.randn(found.d_out, found.d_in)
    with torch.no_grad():
        plain = model(input_ids=TOKENS).logits
        add_to_weight(module, delta)
        changed = model(input_ids=TOKENS).logits
    torch.testing.assert_close(weight, before + delta)
    assert not torch.allclose(plain, changed, atol=1e-3)
    add_to_weight(module, -delta)
    torch.testing.assert_close(weight, before, atol=1e-6, rtol=1e-5)


def test_gpt2_stores_its_weights_the_other_way_round():
    turned = [name for name in FAMILIES_TINY if is_transposed(_value_module(name))]
    assert turned == ["gpt2"]
    assert _value_module("gpt2").weight.shape == (64, HIDDEN)


def test_a_model_with_images_is_edited_in_its_language_model():
    found = architecture_of(OUTSIDERS["gemma3"]())
    assert found == infer_architecture(tiny_model("gemma3"))
    assert found.value_path(0) == "model.language_model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt", "phi3", "falcon"])
def test_a_square_feed_forward_network_is_told_by_its_names(family):
    config = tiny_model(family).config
    width = {"gpt2": "n_inner", "gptj": "n_inner", "opt": "ffn_dim", "falcon": "ffn_hidden_size"}
    setattr(config, width.get(family, "intermediate_size"), HIDDEN)
    found = infer_architecture(type(tiny_model(family))(config))
    assert (found.w_out, found.d_in, found.d_out) == (FAMILIES[family].w_out, HIDDEN, HIDDEN)


def test_an_unlisted_family_is_inferred_and_may_be_square():
    found = architecture_of(_Stranger(["up", "back"], width=48))
    assert (found.model_type, found.blocks, found.w_out, found.head) == (
        "stranger",
        "body",
        "back",
        "top",
    )
    assert architecture_of(_Stranger(["first", "second"], width=8)).w_out == "second"
    with pytest.raises(ArchitectureError, match=r"3 candidates in body.0 .*a 8->8, b 8->8, c 8->8"):
        architecture_of(_Stranger(["a", "b", "c"], width=8))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mixtral", r"a mixture of experts in model\.layers\.0"),
        ("qwen2_moe", r"a mixture of experts in model\.layers\.0"),
        ("mamba", r"no attention in backbone\.layers\.0, as in a state-space model"),
    ],
)
def test_other_structures_are_refused_with_what_was_found(name, found):
    wanted = "a list of 4 blocks, each with attention and "
    wanted += "one feed-forward value matrix of shape 32 x FFN width"
    with pytest.raises(
        ArchitectureError, match=f"{name}: looked for {wanted}; found {found}.*Use a dense"
    ):
        architecture_of(tiny_model(name))


def test_models_without_the_parts_are_refused():
    with pytest.raises(ArchitectureError, match=r"llama: .* found the blocks, but no output head"):
        architecture_of(tiny_model("llama").model)
    with pytest.raises(ArchitectureError, match="Linear: looked for num_hidden_layers"):
        architecture_of(nn.Linear(2, 2))
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )
    with pytest.raises(ArchitectureError, match="found an encoder beside the decoder"):
        architecture_of(t5)
    model = tiny_model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(
        ArchitectureError,
        match=r"no list of that length \(module lists: model.layers of length 4\)",
    ):
        infer_architecture(model)
    with pytest.raises(
        ArchitectureError, match=r"found model\.layers\.4\.mlp\.down_proj with \(in, out\) = None"
    ):
        architecture_of(model)


@pytest.mark.parametrize("layer", [-1, N_LAYERS])
def test_a_layer_out_of_range_is_named_with_the_range(layer):
    model = tiny_model("llama")
    found = architecture_of(model)
    for reach in (found.block, found.value_module):
        with pytest.raises(ConfigError, match=f"no layer {layer}: this llama has 0 to 3"):
            reach(model, layer)
    with pytest.raises(ConfigError):
        found.value_path(layer)


@pytest.mark.parametrize(
    ("depth", "layer"),
    [(32, 27), (28, 21), (48, 38), (12, 9), (6, 4), (4, 2), (3, 1), (2, 0), (1, 0)],
)
def test_the_default_layer_follows_from_depth(depth, layer):
    found = architecture_of(tiny_model("llama"))
    assert dataclasses.replace(found, n_layers=depth).default_layer() == layer


def test_the_default_layer_is_never_at_either_end():
    found = architecture_of(tiny_model("llama"))
    for depth in range(3, 130):
        assert 0 < dataclasses.replace(found, n_layers=depth).default_layer() < depth - 1


def test_a_sum_is_rounded_once_to_the_dtype_of_the_weight():
    module = nn.Linear(3, 2, dtype=torch.bfloat16)
    before, delta = module.weight.detach().clone(), torch.randn(2, 3)
    add_to_weight(module, delta)
    assert torch.equal(module.weight, (before.float() + delta).bfloat16())


def test_weights_that_cannot_be_edited_are_refused():
    module = nn.Linear(3, 2, bias=False)
    assert read_bias(module) is None
    with pytest.raises(UsageError, match=r"\(3, 2\) does not fit W, \(2, 3\)"):
        add_to_weight(module, torch.zeros(3, 2))
    module.weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ArchitectureError, match=r"stored as int8.*without quantisation"):
        read_weight(module)
    for other in (nn.Linear(3, 2, device="meta"), nn.LayerNorm(3), nn.GELU()):
        with pytest.raises(ArchitectureError, match="no weight matrix in memory"):
            read_weight(other)


def _value_module(family):
    model = tiny_model(family)
    return architecture_of(model).value_module(model, 0)


class _Stranger(nn.Module):
    """A model of no known family: width 8, two blocks with linear modules of these names."""

    def __init__(self, names, width):
        super().__init__()
        self.config = type(
            "Config", (), {"model_type": "stranger", "num_hidden_layers": 2, "hidden_size": 8}
        )()
        self.body = nn.ModuleList(self._block(names, width) for _ in range(2))
        self.top = nn.Linear(8, 100)

    def get_output_embeddings(self):
        return self.top

    @staticmethod
    def _block(names, width):
        block = nn.ModuleDict({"attn": nn.ModuleDict({"out": nn.Linear(8, 8)})})
        block.update({name: nn.Linear(8, width) for name in names[:-1]})
        block[names[-1]] = nn.Linear(width, 8)
        return block
