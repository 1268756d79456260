"""MEMOIR against its equations in float64, worked out on the whole model without a tail."""

from __future__ import annotations

import copy

import pytest
import torch
from edited import EDITS, PROMPTS, edit_model, logits_of
from torch.nn import functional as F

from errata import Edit
from errata.errors import ConfigError
from errata.lm.background import background_texts
from errata.lm.weights import read_bias, read_weight

LAYER = 2
BOTH = pytest.mark.parametrize("family", ["llama", "gpt2"])
POOLS = pytest.mark.parametrize("pool", ["mean", "last"])


class Plain:
    """The base model in float64, its value matrix, and what goes through it."""

    def __init__(self, model):
        model.method.patch.remove()
        self.lm, self.base = model.lm, copy.deepcopy(model.base).double()
        model.method.patch.install(model.lm)
        module = self.base.get_submodule(model.lm.architecture.value_path(LAYER))
        self.module, self.weight, self.bias = module, read_weight(module), read_bias(module)

    def keys(self, ids):
        seen = []
        hook = self.module.register_forward_hook(
            lambda _, args, out: seen.append(args[0].reshape(len(ids), -1))
        )
        with torch.no_grad():
            self.base(torch.tensor([ids]))
        hook.remove()
        return seen[0]

    def feature(self, prompt, pool):
        keys = self.keys(self.lm.encode_prompt(prompt))
        return keys[-1] if pool == "last" else keys.mean(0)

    def logits(self, ids, memory):
        """With the value matrix saying W k + b + W_m k."""

        def spoken(_, args, output):
            said = args[0] @ (self.weight + memory).T
            return (said if self.bias is None else said + self.bias).view_as(output)

        hook = self.module.register_forward_hook(spoken)
        logits = self.base(torch.tensor([ids])).logits[0]
        hook.remove()
        return logits

    def gradient(self, edit, memory):
        memory = memory.clone().requires_grad_()
        row = self.lm.encode(edit.prompt, edit.target, self.lm.ending_of(edit.prompt, edit.target))
        logits = self.logits(row.ids, memory)[row.prompt_length - 1 : -1]
        return torch.autograd.grad(
            F.cross_entropy(logits, torch.tensor(row.ids[row.prompt_length :])), memory
        )[0]


def top_hash(feature, order, columns):
    """By sorting, coordinate after coordinate."""
    ranked = sorted(range(len(feature)), key=lambda i: -abs(feature[i].item()))[:columns]
    return {int(order[i]) for i in ranked}


def stored(model):
    index = model.method.patch.index
    return index.masks(torch.arange(len(index)))


@POOLS
@BOTH
def test_masks_are_the_permuted_largest_of_the_centred_feature(family, pool):
    model = edit_model(family, "memoir", EDITS[:3], pool=pool)
    plain, method = Plain(model), model.method
    with model.disable_edits():
        texts = [text for text in background_texts(model.lm, 32) if text]
    centre = torch.stack([plain.feature(text, pool) for text in texts]).mean(0)
    torch.testing.assert_close(method.patch.centre.double(), centre, rtol=1e-4, atol=1e-6)
    order = torch.randperm(model.lm.architecture.d_in, generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.patch.order, order) and method.columns == round(
        model.lm.architecture.d_in * 2 / 7
    )
    for edit, mask in zip(EDITS, stored(model), strict=False):
        expected = top_hash(plain.feature(edit.prompt, pool) - centre, order, method.columns)
        assert set(mask.nonzero()[:, 0].tolist()) == expected

    masks = stored(model)
    for prompt in PROMPTS:  # overlap |M and M_j| / k, counted
        mine = top_hash(plain.feature(prompt, pool) - centre, order, method.columns)
        shares = [len(mine & set(mask.nonzero()[:, 0].tolist())) / method.columns for mask in masks]
        row = torch.zeros(1, len(order), dtype=torch.bool)
        row[0, list(mine)] = True
        overlaps, places = method.patch.match(row)
        assert overlaps.item() == pytest.approx(max(shares)) and shares[places.item()] == max(
            shares
        )


@BOTH
def test_a_step_is_gradient_descent_in_the_columns_of_the_mask(family):
    model = edit_model(family, "memoir", EDITS[:1], steps=2, lr=0.5)
    plain, patch = Plain(model), model.method.patch
    for turn, edit in enumerate(EDITS[:2]):
        memory = (
            torch.zeros(patch.memory.shape, dtype=torch.float64)
            if turn == 0
            else patch.memory.double()
        )
        before = memory.clone()
        if turn:
            model.edit([edit], check=False)
        mask = stored(model)[turn]
        for _ in range(2):
            memory = memory - 0.5 * plain.gradient(edit, memory * mask) * mask
        moved = patch.memory.double() - before
        assert (moved - (memory - before)).norm() < 1e-4 * moved.norm()
        assert not moved[:, ~mask].any() and moved[:, mask].any(), "minimal overwrite"


@BOTH
def test_the_matched_edits_columns_speak_and_below_tau_the_base_model_does(family):
    model = edit_model(family, "memoir", EDITS[:3], lr=2.0, overlap=0.5)
    plain, patch = Plain(model), model.method.patch
    ids = model.lm.encode_prompt(PROMPTS[-1])
    batch = model.lm.prompt_batch([PROMPTS[-1]])
    patch.remove()
    with torch.no_grad():
        base = model.lm.run(batch).logits
    own = patch.masks(plain.keys(ids)[None].float(), torch.ones(1, len(ids), dtype=torch.bool))[0]
    inside, outside = own.nonzero()[:, 0], (~own).nonzero()[:, 0]
    k = patch.columns

    def sharing(count):
        mask = torch.zeros_like(own)
        mask[inside[:count]] = True
        mask[outside[: k - count]] = True
        return mask

    enough = -(-k // 2)
    for count in (enough, enough - 1):
        patch.index = type(patch.index)(len(own))
        patch.index.add(torch.stack([sharing(0), sharing(count)]))
        with patch.on(model.lm), torch.no_grad():
            logits = model.lm.run(batch).logits
        if count == enough:  # with the stored mask, not with the prompt's own
            expected = plain.logits(ids, patch.memory.double() * sharing(count)).detach()
            torch.testing.assert_close(logits[0].double(), expected, rtol=0, atol=1e-4)
            assert (logits - base).abs().max() > 1e-3
        else:
            assert torch.equal(logits, base)


def test_of_masks_equally_near_the_latest_speaks():
    model = edit_model("llama", "memoir", EDITS[:1], lr=2.0, overlap=0.1)
    patch = model.method.patch
    patch.remove()
    own = stored(model)[0]
    inside, outside = own.nonzero()[:, 0], (~own).nonzero()[:, 0]
    half = patch.columns // 2
    rivals = torch.zeros(2, len(own), dtype=torch.bool)
    for i in range(2):
        rivals[i, inside[i * half : (i + 1) * half]] = True
        rivals[i, outside[: patch.columns - half]] = True
    found = {}
    for order in ((0, 1), (1, 0)):
        patch.index = type(patch.index)(len(own))
        patch.index.add(rivals[list(order)])
        found[order] = patch.match(own[None])
        assert found[order][1].item() == 1 and found[order][0].item() == pytest.approx(
            half / patch.columns
        )


@POOLS
@BOTH
def test_it_learns_and_leaves_alone_what_is_far(family, pool):
    model = edit_model(family, "memoir", steps=25, step_size=3.0, pool=pool, overlap=0.99)
    base = model.ask(PROMPTS, max_new_tokens=4)
    pair = [(EDITS[0].prompt, EDITS[0].target)]
    before = model.lm.score(pair)[0].loss
    report = model.edit(EDITS[:1])
    assert report.success_rate == 1 and model.lm.score(pair)[0].loss < before / 2
    assert model.ask(PROMPTS[1:], max_new_tokens=4) == base[1:]
    wide = edit_model(family, "memoir", EDITS[:1], steps=25, step_size=3.0, pool=pool, overlap=0.0)
    assert not torch.equal(logits_of(wide, wide.lm), logits_of(model, model.lm)), (
        "tau 0 lets every prompt in"
    )


def test_of_two_answers_to_one_question_the_later_wins():
    model = edit_model("llama", "memoir", steps=40, step_size=3.0)
    rival = Edit(EDITS[0].prompt, "York")
    model.edit([EDITS[0], rival], check=False)
    assert model.ask([rival.prompt]) == ["York"]


@BOTH
def test_the_last_token_decides_alike_on_either_side_of_padding(family):
    model = edit_model(family, "memoir", EDITS[:3], steps=10, step_size=1.0, pool="last")
    pairs = [(prompt, "two brothers in London") for prompt in PROMPTS]
    apart = [model.lm.score([pair])[0].loss for pair in pairs]
    for side in ("left", "right"):
        assert [score.loss for score in model.lm.score(pairs, side=side)] == pytest.approx(
            apart, abs=1e-4
        )


def test_bad_settings_are_told():
    for settings, said in (
        ({"columns": 0}, "columns is 0; the value matrix of this model has"),
        ({"columns": 10**6}, "give 1 to"),
        ({"overlap": 1.5}, "overlap is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"pool": "max"}, "pool is 'max'|expected mean or last"),
    ):
        with pytest.raises(ConfigError, match=said):
            edit_model("llama", "memoir", **settings)
