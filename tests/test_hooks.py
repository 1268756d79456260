"""Hooks see copies, change what they are told to, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from families import TWELVE, tiny_model
from torch import nn

from errata.errors import ArchitectureError
from errata.lm.architecture import architecture_of
from errata.lm.hooks import capture_input, capture_output, replace_output

TOKENS = torch.arange(20, 34).reshape(2, 7)
X = torch.arange(6.0).reshape(2, 3)


class Pair(nn.Module):
    """Returns its input plus one, and a second thing; may add to its own output in place."""

    def forward(self, hidden_states, *, other=None):
        return hidden_states + 1, other


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_captures_grow_by_one_copy_per_call():
    layer = nn.Identity()
    with capture_input(layer) as read, capture_output(layer) as returned:
        for step in range(3):
            layer(X + step).add_(100)
    assert [float(x[0, 0]) for x in read] == [float(y[0, 0]) for y in returned] == [0, 1, 2]
    layer(X)
    assert len(read) == len(returned) == 3


def test_captures_stay_in_the_graph_when_asked():
    layer = nn.Linear(3, 2)
    x = X.clone().requires_grad_()
    with (
        capture_input(layer, detach=False) as read,
        capture_output(layer, detach=False) as returned,
    ):
        layer(x)
    (read[0].sum() + returned[0].sum()).backward()
    torch.testing.assert_close(x.grad, 1 + layer.weight.sum(0).expand(2, 3))
    with capture_output(layer) as returned:
        layer(x)
    assert not returned[0].requires_grad


def test_of_a_tuple_the_first_element_is_meant():
    pair = Pair()
    with capture_output(pair) as seen, replace_output(pair, lambda y: y * 2):
        changed, other = pair(X, other="kept")
    assert torch.equal(seen[0], X + 1) and torch.equal(changed, (X + 1) * 2) and other == "kept"


@pytest.mark.parametrize(
    "call", [lambda m: m(X, other="kept"), lambda m: m(other="kept", hidden_states=X)]
)
def test_an_input_is_found_by_place_or_by_name(call):
    pair = Pair()
    with capture_input(pair) as seen:
        first, other = call(pair)
    assert torch.equal(first, X + 1) and torch.equal(seen[0], X) and other == "kept"


def test_everything_comes_off_also_after_an_error():
    layer = nn.Linear(3, 2)
    before = layer(X)
    with (
        pytest.raises(ZeroDivisionError),
        capture_input(layer),
        capture_output(layer),
        replace_output(layer, torch.zeros_like),
    ):
        assert hooks_on(layer) == 3 and layer(X).abs().sum() == 0
        raise ZeroDivisionError
    assert hooks_on(layer) == 0 and torch.equal(layer(X), before)


def test_what_carries_no_tensor_is_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return {"x": x}

    odd = Odd()
    with (
        capture_output(odd),
        pytest.raises(ArchitectureError, match="Odd returned dict; expected a tensor"),
    ):
        odd(X)
    with (
        capture_input(odd),
        pytest.raises(ArchitectureError, match="Odd was called without a tensor"),
    ):
        odd("text")


@pytest.mark.parametrize("family", TWELVE)
def test_every_family_can_be_watched_and_changed_at_its_blocks(family):
    model = tiny_model(family)
    found = architecture_of(model)
    third, last = found.block(model, 2), found.block(model, 3)
    with torch.no_grad():
        plain = model(input_ids=TOKENS).logits
        with capture_output(third) as out, capture_input(last) as into:
            model(input_ids=TOKENS)
        with replace_output(third, lambda h: h.flip(0)):
            by_output = model(input_ids=TOKENS).logits
        again = model(input_ids=TOKENS).logits
    assert torch.equal(out[0], into[0]) and out[0].shape == (2, 7, found.hidden_size)
    torch.testing.assert_close(by_output, plain.flip(0))
    assert torch.equal(again, plain) and hooks_on(model) == 0
