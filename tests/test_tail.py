"""The tail on cached inputs equals the whole model, gradients too, and leaves nothing behind."""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
from families import FAMILIES_TINY, N_LAYERS, tiny_model, tiny_tokenizer
from grid import grid, token_places

from errata.lm import LM
from errata.lm.hooks import replace_output
from errata.lm.tail import Tail

PAIRS = [
    ("The capital of Italy is", "Rome"),
    ("Who", "the author of the book"),
    ("In the north of the city", "x."),
]
LAYERS = (0, 2, N_LAYERS - 1)


@cache
def lm_of(family: str) -> LM:
    model = tiny_model(family)
    model.requires_grad_(False)
    return LM(model, tiny_tokenizer())


def rows_of(lm, side):
    batch = lm.batch([lm.encode(prompt, target, ".") for prompt, target in PAIRS], side)
    return batch, *batch.label_positions(batch.target_mask | batch.ending_mask)


def whole(lm, batch, layer=None, values=None):
    """Logits of the whole model, everywhere, with the value matrix saying `values`."""
    if values is None:
        return lm.run(batch, use_cache=False).logits
    module = lm.architecture.value_module(lm.model, layer)
    with replace_output(module, lambda out: values.reshape(out.shape).clone()):
        return lm.run(batch, use_cache=False).logits


def traces(model):
    """(hooks, instance forwards) on a model."""
    modules = list(model.modules())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
    return hooks, [m for m in modules if "forward" in vars(m)]


@grid(
    "family layer",
    [*product(FAMILIES_TINY, LAYERS)],
    lambda family, layer: {family, (token_places(family), layer)},
)
def test_the_tail_is_the_model(family, layer):
    lm = lm_of(family)
    module = lm.architecture.value_module(lm.model, layer)
    for side in ("left", "right"):
        batch, rows, columns, _ = rows_of(lm, side)
        with torch.no_grad():
            plain = whole(lm, batch)
        tail = Tail(lm, layer, batch)
        kept = tail.values.clone()
        assert tail.keys.shape == (*batch.input_ids.shape, lm.architecture.d_in)
        assert tail.values.shape == (*batch.input_ids.shape, lm.architecture.d_out)
        with torch.no_grad():
            torch.testing.assert_close(module(tail.keys), tail.values, rtol=0, atol=1e-5)
            same = tail.logits(tail.values, rows, columns)
        torch.testing.assert_close(same, plain[rows, columns].float(), rtol=0, atol=1e-5)

        torch.manual_seed(layer)
        changed = (kept + 0.5 * torch.randn_like(kept)).requires_grad_()
        weights = torch.randn(len(rows), plain.shape[-1])
        logits = tail.logits(changed, rows, columns)
        expected = whole(lm, batch, layer, changed)[rows, columns]
        assert (expected - plain[rows, columns]).abs().max() > 1e-2, "the change must show"
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
        (mine,) = torch.autograd.grad((logits.log_softmax(-1) * weights).sum(), changed)
        (theirs,) = torch.autograd.grad((expected.log_softmax(-1) * weights).sum(), changed)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        assert mine.abs().max() > 1e-3

        with torch.no_grad():
            assert torch.equal(
                tail.logits(changed, rows, columns), tail.logits(changed, rows, columns)
            )
            torch.testing.assert_close(
                tail.logits(tail.values, rows, columns), same, rtol=0, atol=1e-6
            )
            assert torch.equal(tail.values, kept), "the caller's values were written into"
            assert traces(lm.model) == (0, [])
            assert torch.equal(whole(lm, batch), plain)


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt2", "opt", "gemma2"])
def test_without_the_cache_it_says_the_same(family):
    lm = lm_of(family)
    batch, rows, columns, _ = rows_of(lm, "left")
    said = []
    for cached in (True, False):
        tail = Tail(lm, 2, batch, cached=cached)
        values = tail.values.clone().requires_grad_()
        logits = tail.logits(values * 1.5, rows, columns)
        said.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), values)))
        assert traces(lm.model) == (0, [])
    torch.testing.assert_close(said[0][0], said[1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(said[0][1], said[1][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "bloom"])
def test_below_the_edited_layer_nothing_runs(family):
    lm = lm_of(family)
    batch, rows, columns, _ = rows_of(lm, "left")
    tail = Tail(lm, 2, batch)
    ran = set()
    watch = [
        lm.architecture.value_module(lm.model, i).register_forward_pre_hook(
            lambda *_, i=i: ran.add(i)
        )
        for i in range(N_LAYERS)
    ]
    heads = []
    watch.append(
        lm.architecture.head_module(lm.model).register_forward_hook(
            lambda _, a, o: heads.append(o.shape)
        )
    )
    try:
        tail.logits(tail.values, rows, columns)
    finally:
        for hook in watch:
            hook.remove()
    assert ran == {2, 3}
    assert heads[0][:-1].numel() == len(rows), "the head belongs at the asked positions only"


def test_a_forward_that_stood_on_a_module_is_put_back():
    """As accelerate leaves one on each module under `device_map`."""
    lm = LM(tiny_model("llama"), tiny_tokenizer())
    block = lm.architecture.block(lm.model, 0)
    calls = []
    original = block.forward

    def wrapped(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    block.forward = wrapped
    batch, rows, columns, _ = rows_of(lm, "left")
    tail = Tail(lm, 2, batch)
    tail.logits(tail.values, rows, columns)
    assert block.forward is wrapped and calls == [1]


def test_everything_comes_off_also_after_an_error():
    lm = lm_of("llama")
    batch, rows, columns, _ = rows_of(lm, "left")
    tail = Tail(lm, 2, batch)
    with pytest.raises(IndexError):
        tail.logits(tail.values, rows, columns + 1000)
    assert traces(lm.model) == (0, [])
    torch.testing.assert_close(
        tail.logits(tail.values, rows, columns), whole(lm, batch)[rows, columns]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    lm = LM(tiny_model("llama").to(dtype).requires_grad_(False), tiny_tokenizer())
    batch, rows, columns, _ = rows_of(lm, "left")
    tail = Tail(lm, 2, batch)
    values = tail.values.float().requires_grad_()
    logits = tail.logits(values, rows, columns)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, whole(lm, batch)[rows, columns].float(), rtol=0.05, atol=0.1)
    (gradient,) = torch.autograd.grad(logits.sum(), values)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()
