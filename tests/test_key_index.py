"""`KeyIndex` against plain distances: exact after any additions and removals, and fast enough."""

from __future__ import annotations

import math

import pytest
import torch
from grid import grid

from errata.retrieval import key_index as module
from errata.retrieval.key_index import KeyIndex

SIZES = [(1024, 60, 5), (16, 100, 5), (64, 160, 200), (64, 120, 500)]
"""(keys up to which all are compared, keys, width)."""
KINDS = ("round", "flat", "clustered", "alike")


def make(kind: str, n: int, width: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, width, generator=draw)
    if kind == "flat":  # few directions matter, far from the origin
        return keys * torch.logspace(1, -2, width) + 100
    if kind == "clustered":
        return (
            keys * 0.1
            + torch.randn(7, width, generator=torch.Generator().manual_seed(9))[torch.arange(n) % 7]
            * 5
        )
    if kind == "alike":  # nearly all are the same
        return torch.ones(n, width) + (torch.arange(n) % 3 == 0)[:, None] * keys * 1e-3
    return keys


def expected(
    keys: dict[int, torch.Tensor], query: torch.Tensor, k: int, within: float
) -> list[tuple[float, int]]:
    distances = (torch.stack([*keys.values()]).double() - query.double()).norm(dim=1)
    found = sorted(zip(distances.tolist(), (-name for name in keys), strict=True))
    return [(distance, -name) for distance, name in found[:k] if distance <= within]


@grid(
    "kind few n width",
    [(kind, *size) for kind in KINDS for size in SIZES],
    lambda kind, few, n, width: {kind, (few, n, width)},
)
def test_what_is_found_is_what_is_nearest(kind, few, n, width, monkeypatch):
    monkeypatch.setattr(module, "FEW", few)
    keys, fresh = make(kind, n, width), make(kind, 4, width, 1)
    index, held = KeyIndex(width), {}
    for start, size in (
        (0, 1),
        (1, 2),
        (3, n // 2),
        (3 + n // 2, n - 3 - n // 2),
    ):  # grows in steps
        index.add(range(start, start + size), keys[start : start + size])
        held |= {name: keys[name] for name in range(start, start + size)}
        queries = torch.cat([keys[:4] + 0.01 * fresh, fresh])
        scale = 1.01 * (fresh[0] - keys[0]).norm().item()
        for k, within in ((1, math.inf), (3, math.inf), (1, scale / 3), (5, scale), (1, 0.0)):
            distances, ids = index.nearest(queries, k, within)
            assert distances.shape == ids.shape == (len(queries), k)
            for row, query in enumerate(queries):
                true = expected(held, query, k, within)
                got = [
                    (d, i)
                    for d, i in zip(distances[row].tolist(), ids[row].tolist(), strict=True)
                    if i >= 0
                ]
                assert len(got) == len(true) and all(
                    d == math.inf for d in distances[row, len(true) :].tolist()
                )
                for (d, i), (wanted, name) in zip(got, true, strict=True):
                    assert d == pytest.approx(wanted, rel=1e-5, abs=1e-6)
                    assert i == name or (
                        held[i].double() - query.double()
                    ).norm().item() == pytest.approx(wanted, rel=1e-6)


def test_removed_keys_are_gone_and_the_others_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(module, "FEW", 32)
    keys = make("round", 300, 200)
    index = KeyIndex(200)
    index.add(range(300), keys)
    fits: list[int] = []
    monkeypatch.setattr(index, "_fit", lambda: fits.append(len(index)))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0)).tolist()
    for step, name in enumerate(order):
        assert name in index and torch.equal(index.keys_of([name])[0], keys[name])
        assert index.nearest(keys[name][None])[1].item() == name
        index.remove([name])
        assert name not in index and len(index) == 299 - step
        if len(index):
            assert index.nearest(keys[name][None], within=1.0)[1].item() == -1
            assert index.nearest(keys[order[-1]][None], within=1.0)[1].item() == order[-1]
    assert not fits
    assert index.nearest(keys[:2])[1].tolist() == [[-1], [-1]]
    index.add([7], keys[7:8])
    assert index.nearest(keys[7:8])[1].item() == 7


def test_answers_do_not_depend_on_how_the_index_came_about(monkeypatch):
    monkeypatch.setattr(module, "FEW", 32)
    keys, queries = make("clustered", 200, 150), make("clustered", 20, 150, 3)
    grown, at_once, loaded = KeyIndex(150), KeyIndex(150), KeyIndex(150)
    for name in range(200):
        grown.add([name], keys[name][None])
    grown.remove(range(0, 200, 3))
    kept = [name for name in range(200) if name % 3]
    at_once.add(kept[::-1], keys[kept[::-1]])
    loaded.load_state(grown.state())
    assert grown.ids == at_once.ids == loaded.ids == kept
    for k, within in ((1, math.inf), (6, math.inf), (2, 4.0)):
        answers = [each.nearest(queries, k, within) for each in (grown, at_once, loaded)]
        answers.append(
            tuple(
                torch.cat(p)
                for p in zip(*(grown.nearest(q[None], k, within) for q in queries), strict=True)
            )
        )
        for distances, ids in answers[1:]:
            assert torch.equal(ids, answers[0][1]) and torch.equal(distances, answers[0][0])
    same, others = grown.state(), at_once.state()
    assert same.keys() == others.keys() and all(
        torch.equal(same[name], others[name]) for name in same
    )


def test_of_equal_keys_the_later_is_nearer():
    index = KeyIndex(3)
    key = torch.tensor([[1.0, 2.0, 3.0]])
    for name in (4, 9, 2):
        index.add([name], key)
    assert index.nearest(key, 3)[1].tolist() == [[9, 4, 2]]


def test_a_lookup_within_a_radius_reads_few_keys(monkeypatch):
    """Among keys as they are in models, with one near by, it reads no more than the first few."""
    keys = make("flat", 3000, 300)
    index = KeyIndex(300)
    index.add(range(3000), keys)
    read: list[int] = []
    distances = index._distances
    monkeypatch.setattr(
        index, "_distances", lambda query, slots: read.append(len(slots)) or distances(query, slots)
    )
    for name in range(0, 3000, 100):
        index.nearest(keys[name][None] + 0.001, within=1.0)
    assert sum(read) < 40 * 30


def test_what_cannot_be_is_said():
    index = KeyIndex(3)
    index.add([1], torch.zeros(1, 3))
    with pytest.raises(ValueError, match="expected"):
        index.add([2], torch.zeros(1, 4))
    for ids in ([1], [2, 2]):
        with pytest.raises(ValueError, match="already"):
            index.add(ids, torch.zeros(len(ids), 3))
    with pytest.raises(KeyError):
        index.remove([1, 5])
    assert index.ids == [1]
