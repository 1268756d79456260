"""Masks and the nearest of them, against comparing them all by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from errata.errors import ConfigError
from errata.retrieval.mask_index import MaskIndex, pack, unpack


def some(count: int, width: int, seed: int = 0, share: float = 0.3) -> torch.Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed)) < share


def by_hand(masks: torch.Tensor, asked: torch.Tensor) -> tuple[list[int], list[int]]:
    distances = (masks[None] ^ asked[:, None]).sum(-1)
    least = distances.amin(-1)
    latest = [int((row == low).nonzero().max()) for row, low in zip(distances, least, strict=True)]
    return least.tolist(), latest


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64, 300])
def test_nearest_is_that_of_comparing_them_all_and_of_equals_the_latest(width):
    masks, asked = some(40, width), some(25, width, seed=1)
    masks = torch.cat([masks, masks[:10]])  # each of the ten is there twice
    index = MaskIndex(width)
    index.add(masks[:17])
    index.add(masks[17:])
    assert len(index) == 50
    for these in (asked, masks):
        distances, places = index.nearest(these)
        assert (distances.tolist(), places.tolist()) == by_hand(masks, these)


def test_what_is_removed_is_never_found_and_those_behind_it_move_up():
    masks = some(30, 50)
    index = MaskIndex(50)
    index.add(masks)
    index.remove([3, 29, 0, 3])
    left = masks[[i for i in range(30) if i not in (0, 3, 29)]]
    assert len(index) == 27 and torch.equal(index.masks(torch.arange(27)), left)
    distances, places = index.nearest(masks)
    assert (distances.tolist(), places.tolist()) == by_hand(left, masks)
    index.add(masks[:1])
    assert [part.tolist() for part in index.nearest(masks[:1])] == [[0], [27]]
    index.remove(range(28))
    assert len(index) == 0 and index.packed().shape == (0, 7)


def test_bits_are_whole():
    masks = some(5, 13)
    packed = pack(masks)
    assert packed.shape == (5, 2) and torch.equal(unpack(packed, 13), masks)
    index = MaskIndex(13)
    index.add(masks)
    again = MaskIndex(13)
    again.add_packed(index.packed())
    assert torch.equal(again.packed(), packed) and torch.equal(
        index.masks(torch.tensor([4, 0])), masks[[4, 0]]
    )
    with pytest.raises(ValueError, match="do not fit an index of 13 bits"):
        again.add(some(1, 30))


def test_without_faiss_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'errata\[index\]'"):
        MaskIndex(8)
