"""FT-EWC against its equations in float64, worked out on the whole model without a tail."""

from __future__ import annotations

import copy

import pytest
import torch
from edited import EDITS, edit_model
from torch.nn import functional as F

from errata.lm.weights import read_weight

LAYER = 2


def nll_gradient(model, edit, delta):
    """(NLL, its gradient) of an edit's answer at W + delta, by the plain model in float64."""
    base = copy.deepcopy(model.base).double()
    weight = base.get_submodule(model.lm.architecture.value_path(LAYER)).weight
    row = model.lm.encode(edit.prompt, edit.target, model.lm.ending_of(edit.prompt, edit.target))
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        weight += delta
    weight.requires_grad_()
    logits = base(ids).logits[0, row.prompt_length - 1 : -1]
    loss = F.cross_entropy(logits, ids[0, row.prompt_length :])
    return loss, torch.autograd.grad(loss, weight)[0]


@pytest.mark.parametrize(("memory", "history"), [(10, 1), (10, 3), (2, 4)])
def test_fisher_is_the_mean_squared_gradient_of_the_latest_edits(memory, history):
    model = edit_model("llama", "ewc", EDITS[:history], memory=memory, steps=3)
    model.method.patch.remove()
    delta = model.method.patch.deltas[model.method.path]
    latest = EDITS[:history][-memory:]
    expected = sum(nll_gradient(model, edit, delta)[1].square() for edit in latest) / len(latest)
    torch.testing.assert_close(model.method.fisher(delta).double(), expected, rtol=1e-4, atol=1e-9)


def test_without_a_history_nothing_is_held():
    model = edit_model("llama", "ewc")
    assert not model.method.fisher(model.method.patch.deltas[model.method.path]).any()


def test_steps_are_adam_on_loss_and_penalty():
    strength, lr, steps = 50.0, 1e-3, 4
    first = edit_model("llama", "ewc", EDITS[:1], strength=strength, lr=lr, steps=steps)
    first.method.patch.remove()
    before = first.method.patch.deltas[first.method.path].double()
    fisher = first.method.fisher(before.float()).double()
    delta, mean, square = before.clone(), torch.zeros_like(before), torch.zeros_like(before)
    for step in range(1, steps + 1):
        gradient = nll_gradient(first, EDITS[1], delta)[1] + 2 * strength * fisher * (
            delta - before
        )
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        delta = delta - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    first.edit(EDITS[1:2], check=False)
    moved = first.method.patch.deltas[first.method.path].double() - before
    assert (moved - (delta - before)).norm() < 1e-2 * moved.norm()


def test_a_strong_penalty_holds_the_matrix_back():
    moved = []
    for strength in (0.0, 1e6):
        model = edit_model("llama", "ewc", EDITS[:3], strength=strength, steps=20)
        one = edit_model("llama", "ewc", EDITS[:2], strength=strength, steps=20)
        path = model.method.path
        moved.append(
            (model.method.patch.deltas[path] - one.method.patch.deltas[path]).norm().item()
        )
    assert moved[1] < 0.5 * moved[0]


def test_it_stops_when_every_token_is_the_models_choice():
    model = edit_model("llama", "ewc", EDITS[:1], steps=200)
    assert model.ask([EDITS[0].prompt]) == [EDITS[0].target]
    again = edit_model("llama", "ewc", EDITS[:1], steps=400)
    path = model.method.path
    assert torch.equal(model.method.patch.deltas[path], again.method.patch.deltas[path])
    assert (
        model.method.patch.deltas[path].shape == read_weight(model.base.get_submodule(path)).shape
    )
