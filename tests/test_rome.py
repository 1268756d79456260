"""ROME and R-ROME against their equations in float64."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS, edit_model
from grid import grid

import errata
from errata.errors import ConfigError, EditError
from errata.lm.weights import read_bias, read_weight
from errata.methods.mastery.rome import RomeConfig, rank_one
from errata.solvers.moments import SecondMoment
from errata.solvers.values import ValueProblem, ValueSolution, solve_value

KEYS = ("mixed", "prefixes", "prompt")
ROME = {"layer": 1, "steps": 5, "prefixes": 3}


def random_value(d_in=12, d_out=5):
    generator = torch.Generator().manual_seed(0)
    weight, bias, keys, delta, root = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((d_out, d_in), (d_out,), (4, d_in), (d_out,), (d_in, 30))
    )
    value = ValueSolution(delta, keys, keys @ weight.T + bias, [])
    return weight, bias, value, root @ root.T / 30


@pytest.mark.parametrize("key", KEYS)
def test_the_matrix_then_says_the_value_at_the_key(key):
    weight, bias, value, moment = random_value()
    changed = weight + rank_one(value, key, SecondMoment(moment))
    written = value.keys.mean(0) if key == "prefixes" else value.keys[0]
    torch.testing.assert_close(changed @ written + bias, value.values[0] + value.delta)


@pytest.mark.parametrize("key", KEYS)
def test_it_is_the_published_formula(key):
    weight, bias, value, moment = random_value()
    inverse, mean, bare = torch.linalg.inv(moment), value.keys.mean(0), value.keys[0]
    aim = weight @ bare + bias + value.delta
    expected = {
        "mixed": lambda: (
            torch.outer(aim - (weight @ bare + bias), inverse @ mean) / ((inverse @ mean) @ bare)
        ),
        "prefixes": lambda: (
            torch.outer(aim - (weight @ mean + bias), inverse @ mean) / ((inverse @ mean) @ mean)
        ),
        "prompt": lambda: (
            torch.outer(aim - (weight @ bare + bias), inverse @ bare) / ((inverse @ bare) @ bare)
        ),
    }[key]()
    torch.testing.assert_close(rank_one(value, key, SecondMoment(moment)), expected)


def test_among_changes_that_say_the_value_it_disturbs_the_background_least():
    *_, value, moment = random_value()
    change = rank_one(value, "prompt", SecondMoment(moment))
    other = torch.randn(change.shape, generator=torch.Generator().manual_seed(1)).double()
    key = value.keys[0]
    other -= torch.outer(other @ key, key) / (key @ key)  # says nothing at the key
    for size in (0.01, 0.1, 1.0):
        assert (change @ moment * change).sum() < (
            (change + size * other) @ moment * (change + size * other)
        ).sum()


@grid(
    "family key",
    [(family, key) for family in ("llama", "gpt2", "gemma2") for key in KEYS],
    lambda family, key: {family, key},
)
def test_a_written_edit_is_the_formula_on_the_model_as_edited_so_far(family, key):
    model = edit_model(family, "rome", EDITS[:1], key=key, **ROME)
    method, lm = model.method, model.lm
    before = method.patch.deltas[method.path].clone()
    problem = None
    with model.disable_edits():
        problem = ValueProblem.of(lm, EDITS[1], method.prefixes)
        moment = method.statistics[1].matrix
    value = solve_value(lm, 1, problem, method.config)  # the first edit is on
    model.edit(EDITS[1:2], check=False)
    moved = (method.patch.deltas[method.path] - before).double()
    ridged = moment + method.config.ridge * moment.diagonal().mean() * torch.eye(len(moment))
    aimed, written = {
        "mixed": (value.keys.mean(0), value.keys[0]),
        "prefixes": (value.keys.mean(0),) * 2,
        "prompt": (value.keys[0],) * 2,
    }[key]
    direction = torch.linalg.solve(ridged, aimed.double())
    said = value.values.mean(0) if key == "prefixes" else value.values[0]
    expected = torch.outer((value.values[0] + value.delta - said).double(), direction) / (
        direction @ written.double()
    )
    assert (moved - expected).norm() < 1e-4 * expected.norm()

    module = model.base.get_submodule(
        method.path
    )  # the edit is on: the model itself says the value at the key
    bias = read_bias(module)
    says = read_weight(module) @ written + (0 if bias is None else bias)
    torch.testing.assert_close(says, value.values[0] + value.delta, rtol=1e-3, atol=1e-3)


def test_variants_layer_and_prefixes():
    assert errata.method_class("rome").variants["r-rome"] == {"key": "prefixes"}
    assert edit_model("llama", "rome", layer=None).method.layer == 1
    prefixes = edit_model("llama", "rome", prefixes=5, prefix_length=8).method.prefixes
    assert len(prefixes) == 5 == len(set(prefixes))
    assert edit_model("llama", "rome", EDITS[:1], prefixes=0).method.prefixes == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("key", "both"), ("steps", 0), ("clamp", -1.0), ("ridge", -1.0), ("background", 0)],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name):
        RomeConfig(**{name: value})


def test_an_edit_needs_its_subject():
    with pytest.raises(EditError, match="needs to know each edit's subject"):
        edit_model("llama", "rome", [errata.Edit("The capital of France is", "Rome")])
