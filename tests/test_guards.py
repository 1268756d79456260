"""Guards of the weight editors: solved values keep their length, leading directions stay."""

from __future__ import annotations

import pytest
import torch
from edited import EDITS, edit_model, same_state

import errata
from errata.lm.weights import read_weight
from errata.methods.guarded_method import LENGTHS
from errata.solvers.guards import (
    GUARDED,
    SpectralGuard,
    anchor,
    value_length,
    with_length,
)
from errata.solvers.values import ValueSolution

EDITORS = {
    "rome": {"layer": 1, "steps": 4, "prefixes": 1},
    "memit": {"layer": 2, "window": 2, "steps": 3, "prefixes": 1, "background_weight": 1.0},
    "alphaedit": {"layer": 2, "window": 2, "steps": 3, "prefixes": 1, "turn": 2},
}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_change_loses_the_leading_directions_and_keeps_the_others():
    weight, change = drawn(5, 9), drawn(5, 9, seed=1)
    left, values, right = torch.linalg.svd(weight)  # square bases: the null space too
    for rank in range(1, 5):
        held = values[:rank].square().sum() / values.square().sum()
        passed = SpectralGuard(weight, float(held) - 1e-9).filter(change)
        inside = left.T @ change @ right.T
        inside[:rank], inside[:, :rank] = 0, 0
        torch.testing.assert_close(passed, left @ inside @ right)
        torch.testing.assert_close(SpectralGuard(weight, float(held) - 1e-9).filter(passed), passed)
    assert SpectralGuard(weight, 1.0).filter(change).abs().max() < 1e-12


def test_a_value_gets_a_length_and_keeps_its_direction():
    value = ValueSolution(drawn(4), drawn(2, 3), drawn(2, 4, seed=2), [])
    before = value.values[0] + value.delta
    after = value.values[0] + with_length(value, 3.0)
    assert after.norm().item() == pytest.approx(3.0)
    assert torch.cosine_similarity(before, after, dim=0).item() == pytest.approx(1)
    same = with_length(value, value_length(value))
    torch.testing.assert_close(same, value.delta, rtol=0, atol=1e-6)


def test_the_anchor_leaves_out_the_longest_twentieth():
    assert anchor(torch.tensor([2.0, 4.0])) == 3.0
    assert anchor(torch.tensor([*[1.0] * 19, 100.0])) == 1.0


@pytest.mark.parametrize(
    "name",
    ["memit", *(pytest.param(name, marks=pytest.mark.long) for name in EDITORS if name != "memit")],
)
def test_the_anchor_is_the_mean_over_values_of_the_base_model(name):
    model = edit_model("llama", name, EDITS[:3], norm_guard=True, **EDITORS[name])
    kept = model.method.extra_state[LENGTHS]
    alone = [
        edit_model("llama", name, [edit], norm_guard=True, **EDITORS[name]).method.extra_state
        for edit in EDITS[:3]
    ]
    torch.testing.assert_close(kept, torch.cat([each[LENGTHS] for each in alone]))
    off = edit_model("llama", name, EDITS[:3], **EDITORS[name])
    assert LENGTHS not in off.method.extra_state
    one, plain = (
        edit_model("llama", name, EDITS[:1], norm_guard=on, **EDITORS[name]) for on in (True, False)
    )
    for path, delta in plain.method.patch.deltas.items():  # its own length: a first edit stays
        torch.testing.assert_close(one.method.patch.deltas[path], delta, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", EDITORS)
def test_a_guarded_model_acts_on_the_leading_inputs_as_before(name):
    settings = {**EDITORS[name], "spectral_guard": 0.4}
    model = edit_model("llama", name, EDITS[:4], **settings)
    assert all(delta.norm() > 0 for delta in model.method.patch.deltas.values())
    for path, delta in model.method.patch.deltas.items():
        with model.disable_edits():
            left, _, right = torch.linalg.svd(read_weight(model.base.get_submodule(path)).double())
        size = delta.norm().double()
        assert (delta.double() @ right[0]).norm() < 1e-5 * size
        assert (left[:, 0] @ delta.double()).norm() < 1e-5 * size


def test_a_stream_across_turns_and_calls_has_one_anchor(tmp_path):
    settings = {**EDITORS["alphaedit"], **GUARDED}
    at_once = edit_model("llama", "alphaedit", EDITS[:5], **settings)
    parts = edit_model("llama", "alphaedit", EDITS[:3], **settings)
    parts.edit(EDITS[3:5], check=False)
    same_state(at_once, parts, 1e-5)
    assert len(at_once.method.extra_state[LENGTHS]) == 5


def test_variants_are_the_methods_with_both_guards():
    for name in EDITORS:
        config = errata.method_config(f"{name}-guarded")
        assert config.norm_guard and config.spectral_guard == GUARDED["spectral_guard"]
        assert errata.method_class(name).called(config) == f"{name}-guarded"
        assert not errata.method_config(name).norm_guard
