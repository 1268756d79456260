"""WISE's bookkeeping: masks, shards, how they become memories, thresholds, lanes, undo."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from edited import EDITS, logits_of, same_state
from edited import pinned_wise as made
from grid import grid, token_places

from errata import Edit, EditModel, WiseConfig
from errata.errors import ConfigError
from errata.methods.association.wise.method import Wise
from errata.methods.association.wise.overlap import expected_overlap
from errata.methods.association.wise.shards import Shard, pack_mask, unpack_mask
from errata.solvers.merging import merge


def shards_of(model: EditModel) -> list[Shard]:
    assert isinstance(model.method, Wise)
    return model.method.shards


HELD = {
    "plain": {},
    "decay": {"weight_decay": 0.3},
    "clamp": {"norm_clamp": 0.01},
    "all": {"weight_decay": 0.3, "norm_clamp": 0.01, "memo": 1},
}


@grid("family held", [*product(("llama", "gpt2"), HELD)], lambda family, held: {family, held})
def test_nothing_outside_a_mask_ever_changes(family, held):
    settings = HELD[held]
    plain = made(EDITS[:3], family)
    weights = {name: tensor.clone() for name, tensor in plain.base.state_dict().items()}
    model = made(EDITS[:3], family, **settings)
    for shard in shards_of(model):
        assert (shard.delta[~shard.mask] == 0).all()
        assert (shard.delta[shard.mask] != 0).float().mean() > 0.3
        if clamp := settings.get("norm_clamp"):
            assert shard.delta.abs().max() == pytest.approx(clamp)
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in model.base.state_dict().items()
    )
    if settings:
        assert shards_of(model)[0].delta.norm() < shards_of(plain)[0].delta.norm()


def test_masks_have_their_rate_and_their_overlap():
    writer = made(mask_ratio=0.3).method.writer
    masks = [writer.new_shard(index).mask for index in range(8)]
    assert masks[0].dtype == torch.bool and masks[0].shape == (32, 64)
    for mask in masks:
        assert mask.float().mean().item() == pytest.approx(0.3, abs=0.05)
    pairs = [(masks[i] & masks[j]).sum().item() for i in range(8) for j in range(i)]
    expected = expected_overlap(0.3, 2)
    spread = expected.deviation(masks[0].numel())
    assert sum(pairs) / len(pairs) == pytest.approx(expected.pair * masks[0].numel(), abs=spread)
    assert all(abs(found - expected.pair * masks[0].numel()) < 5 * spread for found in pairs)
    assert torch.stack(masks).any(0).float().mean().item() == pytest.approx(
        expected_overlap(0.3, 8).union, abs=0.03
    )


def test_a_mask_follows_from_seed_and_index():
    writer, again, other = (made(seed=seed).method.writer for seed in (0, 0, 1))
    for index in (0, 5):
        assert torch.equal(writer.new_shard(index).mask, again.new_shard(index).mask)
        assert not torch.equal(writer.new_shard(index).mask, other.new_shard(index).mask)
        assert not torch.equal(writer.new_shard(index).mask, writer.new_shard(index + 1).mask)
    assert made(mask_ratio=1.0).method.writer.new_shard(0).mask.all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 6), (8, 8), (1, 9)])
def test_a_mask_packs_into_bits(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    for each in (mask, torch.zeros_like(mask), torch.ones_like(mask)):
        packed = pack_mask(each)
        assert packed.dtype == torch.uint8 and packed.numel() == (each.numel() + 7) // 8
        assert torch.equal(unpack_mask(packed, shape), each)
    too_long = torch.cat([packed, packed.new_zeros(1)])
    for bad in (packed[:-1], too_long, packed.int()):
        with pytest.raises(ValueError, match=f"does not fit a matrix of {shape[0]} x {shape[1]}"):
            unpack_mask(bad, shape)


def test_a_shard_knows_only_its_own_edits():
    one, other = made(EDITS), made([EDITS[4], EDITS[5], EDITS[2], EDITS[3], EDITS[0], EDITS[1]])
    alone, silent = made(EDITS, memo=2), made([EDITS[4], EDITS[5], EDITS[2], EDITS[3]], memo=2)
    first, second, third = (shards_of(model) for model in (one, other, alone))
    torch.testing.assert_close(first[1].delta, second[1].delta, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        first[0].delta, third[0].delta, rtol=0, atol=1e-5
    )  # the first has nothing to be silent on
    assert not torch.allclose(third[1].delta, first[1].delta, atol=1e-4)
    assert not torch.allclose(third[1].delta, shards_of(silent)[1].delta, atol=1e-4)


@pytest.mark.parametrize("memo", [0, 2])
def test_undo_writes_anew_what_depended_on_the_edit(memo):
    model = made(EDITS, variant="retrieve", memo=memo)
    before = [shard.delta for shard in shards_of(model)]
    model.undo(EDITS[2].id)
    after = [shard.delta for shard in shards_of(model)]
    assert torch.equal(after[0], before[0]) and not torch.allclose(after[1], before[1], atol=1e-4)
    assert torch.equal(after[2], before[2]) == (memo == 0)

    never = made(EDITS[:2], variant="retrieve", memo=memo)
    never.edit([EDITS[3]], check=False)
    shards_of(never)[1].slots += 1  # the undone edit keeps its slot
    never.edit(EDITS[4:], check=False)
    same_state(model, never, 1e-5)
    torch.testing.assert_close(
        logits_of(model, model.lm), logits_of(never, never.lm), rtol=0, atol=1e-4
    )
    for each in (model, never):
        each.edit([EDITS[2]], check=False)
    assert model.edits[-1] == EDITS[2]
    same_state(model, never, 1e-5)


def test_a_memory_without_edits_disappears():
    model = made(EDITS[:5], variant="retrieve", shards_per_merge=1)
    memories = model.method.patch.memories
    assert len(memories) == 3
    model.undo(EDITS[2].id, EDITS[3].id)
    assert [memory.delta for memory in model.method.patch.memories] == [
        memories[0].delta,
        memories[2].delta,
    ]
    assert [memory.threshold for memory in model.method.patch.memories] == [
        memories[0].threshold,
        memories[2].threshold,
    ]
    model.undo(EDITS[4].id)
    assert len(model.method.patch.memories) == 1
    model.undo(EDITS[0].id, EDITS[1].id)
    assert model.method.patch.memories == [] and model.edits == []
    assert torch.equal(logits_of(model, model.lm), logits_of(made(), model.lm))


WAYS = [("ties", 1.0), ("ties", 0.1), ("linear", 1.0), ("dare_linear", 0.5)]


@pytest.mark.parametrize(("method", "density"), WAYS)
def test_full_shards_become_one_memory(method, density):
    settings = {
        "edits_per_shard": 1,
        "merge_method": method,
        "merge_density": density,
        "steps": 1,
        "prefixes": 0,
    }
    for weights in ("paper", "published"):
        model = made(EDITS[:5], merge_weights=weights, **settings)
        deltas = [shard.delta for shard in shards_of(model)]

        def by_hand(parts, factors=None):
            return merge(parts, method, weights=factors, density=density, seed=0)

        if weights == "paper":
            expected = by_hand(deltas[:4])
        else:
            expected = by_hand([deltas[2], deltas[3], by_hand(deltas[:2])], [0.2, 0.2, 0.6])
        merged, still_open = (memory.delta for memory in model.method.patch.memories)
        torch.testing.assert_close(merged, expected, rtol=0, atol=1e-6)
        assert torch.equal(still_open, deltas[4])
        parts = made(
            EDITS[:5], variant="retrieve", merge_weights=weights, **settings
        ).method.patch.memories
        for found, wanted in zip(
            parts, (by_hand(deltas[:2]), by_hand(deltas[2:4]), deltas[4]), strict=True
        ):
            torch.testing.assert_close(found.delta, wanted, rtol=0, atol=1e-5)


def test_half_full_shards_and_unmerged_ones_are_memories_of_their_own():
    model = made(edits_per_shard=2, shards_per_merge=2)
    counts = []
    for edit in EDITS:
        model.edit([edit], check=False)
        counts.append(len(model.method.patch.memories))
    assert counts == [1, 1, 2, 1, 2, 2]
    model.undo(EDITS[5].id)  # the last shard is half full again
    assert counts[4] == len(model.method.patch.memories) == 2


@grid(
    "ratio score",
    [*product((0.8, 1.0, 0.01), ("linear", "activated"))],
    lambda ratio, score: {ratio, score},
)
def test_thresholds_are_measured_on_the_finished_memories(ratio, score):
    settings = {"pool": "mean", "score": "activated"} if score == "activated" else {}
    model = made(
        EDITS[:5], steps=8, variant="retrieve", threshold_ratio=ratio, edits_per_shard=1, **settings
    )
    patch = model.method.patch
    own = patch.probe(model.lm, [edit.prompt for edit in EDITS[:5]])
    background = patch.probe(model.lm, model.method.writer.examples.prompts)
    for j, mine in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        expected = max(ratio * own[j, mine].min().item(), background[j].quantile(0.99).item())
        assert patch.memories[j].threshold == pytest.approx(expected, rel=1e-4)
        if ratio == 0.01:
            assert expected > 2 * ratio * own[j, mine].min().item(), "here the background decides"


@grid("family", [("llama",), ("gpt2",), ("opt",)], lambda family: {token_places(family)})
def test_many_lanes_write_what_one_lane_writes(family):
    settings = {"memo": 1, "contrast": 1, "edits_per_shard": 2}
    narrow, wide = (made(EDITS, family, chunk_rows=rows, **settings) for rows in (1, 64))
    same_state(narrow, wide, 1e-5)
    assert [memory.threshold for memory in narrow.method.patch.memories] == pytest.approx(
        [memory.threshold for memory in wide.method.patch.memories], rel=1e-4
    )


@pytest.mark.long
@pytest.mark.parametrize("memo", [2, 0])
def test_edits_of_different_shards_go_to_their_own_memories(memo):
    edits = [*EDITS[:3], Edit(EDITS[3].prompt, EDITS[3].target)]
    settings = {
        "variant": "retrieve",
        "edits_per_shard": 1,
        "shards_per_merge": 1,
        "steps": 40,
        "contrast": 2,
    }
    model = made(edits, memo=memo, **settings)
    patch = model.method.patch
    activations = patch.probe(model.lm, [edit.prompt for edit in edits])
    assert patch.decide(activations).tolist() == [0, 1, 2, 3]
    if memo:
        without = made(edits, memo=0, **settings)
        others = without.method.patch.probe(without.lm, [edit.prompt for edit in edits])
        later = torch.ones(4, 4).tril(-1).bool()  # memory j on the prompts of memories before it
        assert activations[later].mean() < others[later].mean()


class Cut(Exception):
    pass


def test_cut_off_in_the_middle_of_a_call_no_shard_is_lost_later():
    """Three shards have one edit of two when the call is cut off; then the edits go on."""

    def cut(_: int) -> None:
        raise Cut

    model = made()
    with pytest.raises(Cut):
        model.edit(EDITS, check=False, progress=cut)
    model.edit(EDITS, check=False)
    assert {edit.id for edit in model.edits} == {edit.id for edit in EDITS}
    spoken_for = [shard.index for shards in model.method.groups() for shard in shards]
    assert sorted(spoken_for) == [shard.index for shard in shards_of(model)], (
        "a shard is in no memory, or in two"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"gain": 0.0},
        {"norm_clamp": -1.0},
        {"merge_method": "slerp", "variant": "retrieve", "shards_per_merge": 1},
        {"merge_method": "slerp", "variant": "merge", "shards_per_merge": 2},
    ],
    ids=["gain", "clamp", "slerp-of-one", "slerp-of-all"],
)
def test_settings_that_cannot_work_are_told_at_once(settings):
    with pytest.raises(ConfigError):
        WiseConfig(**settings)


def test_disjoint_masks_share_nothing_as_long_as_there_is_room():
    model = made([], masks="disjoint", mask_ratio=0.25)
    masks = torch.stack([model.method.writer.new_shard(i).mask for i in range(5)])
    assert int(masks[:4].sum(0).max()) == 1 and bool(masks[:4].any(0).all())
    assert torch.equal(masks[0], masks[4]), "the fifth goes where the first is"
    assert masks[:4].float().mean((1, 2)).tolist() == pytest.approx([0.25] * 4, abs=0.04)
