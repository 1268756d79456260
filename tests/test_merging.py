"""Merging against a slow reference that works entry by entry, against PEFT, and at its edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.methods.association.wise.overlap import expected_overlap
from errata.solvers.merging import MERGES, keep_largest, merge

torch.set_num_threads(1)

ANY_NUMBER = sorted(set(MERGES) - {"slerp"})
SHAPE = (7, 10)


def shards(k: int, rho: float = 0.4, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    """k deltas, each exactly zero outside a random mask; rounded, so that ties and zero sums do
    occur.
    """
    rng = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=rng).mul(4).round() / 4 for _ in range(k)]
    return [v * (torch.rand(shape, generator=rng) < rho) for v in values]


def slow_trim(entries: list[float], density: float) -> list[float]:
    """The largest round(density * n) by magnitude; of equal ones the first."""
    count = max(1, round(density * len(entries)))
    order = sorted(range(len(entries)), key=lambda i: (-abs(entries[i]), i))
    kept = set(order[:count])
    return [x if i in kept else 0.0 for i, x in enumerate(entries)]


def slow_elected(terms: list[float], weights: list[float], majority: str, normalize: bool) -> float:
    """One entry: `terms` are w_i tau_i."""
    vote = math.fsum((term > 0) - (term < 0) if majority == "frequency" else term for term in terms)
    agreeing = [(x, w) for x, w in zip(terms, weights, strict=True) if x and (x > 0) == (vote >= 0)]
    if not agreeing:
        return 0.0
    total = sum(x for x, _ in agreeing)
    return total / sum(abs(w) for _, w in agreeing) if normalize else total


def slow_merge(
    deltas: list[Tensor],
    weights: list[float],
    density: float,
    elect: bool,
    majority: str,
    normalize: bool,
) -> Tensor:
    columns = [slow_trim(delta.flatten().tolist(), density) for delta in deltas]
    out = []
    for entry in zip(*columns, strict=True):
        terms = [w * x for w, x in zip(weights, entry, strict=True)]
        if elect:
            out.append(slow_elected(terms, weights, majority, normalize))
        else:
            out.append(sum(terms) / (sum(weights) if normalize else 1.0))
    return torch.tensor(out).view(deltas[0].shape)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 0.25, 0.25], [2.0, -0.5, 1.0]])
def test_against_the_slow_reference(
    seed: int, majority: str, normalize: bool, weights: list[float]
) -> None:
    deltas = shards(3, seed=seed)
    options: dict[str, Any] = {"weights": weights, "majority": majority, "normalize": normalize}
    for method, density in itertools.product(
        ("linear", "magnitude", "ties", "sign"), (1.0, 0.3, 0.1, 0.001)
    ):
        rule = MERGES[method]
        kept = density if rule.drop == "smallest" else 1.0
        expected = slow_merge(deltas, weights, kept, rule.elect, majority, normalize)
        merged = merge(deltas, method, density=density, scale=0.5, **options)
        torch.testing.assert_close(
            merged, 0.5 * expected, msg=lambda text, m=method: f"{m}: {text}"
        )


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_against_peft(k: int) -> None:
    """PEFT elects with unweighted deltas and divides by their number, so weights are 1 where it
    elects.
    """
    peft = pytest.importorskip("peft.utils.merge_utils")
    torch.manual_seed(k)
    deltas = [torch.randn(20, 25) for _ in range(k)]
    ones, some = torch.ones(k), torch.rand(k) + 0.1
    w = some.tolist()
    pairs = [
        (merge(deltas, "task_arithmetic", weights=w), peft.task_arithmetic(deltas, some)),
        (
            merge(deltas, "magnitude", weights=w, density=0.4),
            peft.magnitude_prune(deltas, some, 0.4),
        ),
        (merge(deltas, "ties", density=0.2), peft.ties(deltas, ones, 0.2)),
        (merge(deltas, "ties", density=0.6), peft.ties(deltas, ones, 0.6)),
        (
            merge(deltas, "ties", density=0.6, majority="frequency"),
            peft.ties(deltas, ones, 0.6, "frequency"),
        ),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("weighted", [False, True])
def test_dare_against_peft_with_the_same_mask(
    weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft.utils.merge_utils")
    torch.manual_seed(3)
    deltas = [torch.randn(20, 25) for _ in range(3)]
    weights = torch.rand(3) + 0.1 if weighted else torch.ones(3)

    def theirs(call: str) -> Tensor:
        rng = torch.Generator().manual_seed(11)  # what `seed=11` draws, in the same order

        def bernoulli(probabilities: Tensor) -> Tensor:
            return (torch.rand(probabilities.shape, generator=rng) < probabilities).float()

        monkeypatch.setattr(torch, "bernoulli", bernoulli)
        out: Tensor = getattr(peft, call)(deltas, weights, 0.3)
        return out

    ours = merge(deltas, "dare", weights=weights.tolist(), density=0.3, seed=11)
    torch.testing.assert_close(ours, theirs("dare_linear"))
    if not weighted:
        torch.testing.assert_close(
            merge(deltas, "dare_ties", density=0.3, seed=11), theirs("dare_ties")
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ANY_NUMBER)
def test_one_delta_is_itself(method: str, dtype: torch.dtype) -> None:
    (delta,) = shards(1)
    delta = (delta + delta.sign() * 0.1).to(dtype)
    before = delta.clone()
    merged = merge([delta], method)
    assert merged.dtype == dtype and torch.equal(merged, delta)
    assert merged.data_ptr() != delta.data_ptr() and torch.equal(delta, before)


@pytest.mark.parametrize("method", sorted(MERGES))
def test_the_deltas_stay_and_the_result_is_theirs_in_kind(method: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        deltas = [d.to(dtype).requires_grad_() for d in shards(2)]
        before = [d.detach().clone() for d in deltas]
        merged = merge(deltas, method, density=0.5, weights=[0.5, 0.5], scale=2.0)
        assert merged.shape == SHAPE and merged.dtype == dtype and not merged.requires_grad
        assert all(torch.equal(a, b) for a, b in zip(deltas, before, strict=True))


def test_half_precision_is_computed_in_single() -> None:
    """256 deltas of 1 and one of 256: bf16 cannot add 1 to 256, fp32 can."""
    deltas = [torch.full((3,), 256.0, dtype=torch.bfloat16)] + [
        torch.ones(3, dtype=torch.bfloat16)
    ] * 256
    assert merge(deltas, "task_arithmetic").tolist() == [512.0] * 3
    assert merge(deltas, "ties", normalize=False).tolist() == [512.0] * 3


def test_ties_by_hand() -> None:
    """Trim to 2 of 4 each, elect, mean of those that agree."""
    a = torch.tensor([4.0, -3.0, 0.1, 0.0])
    b = torch.tensor([2.0, 1.0, 0.2, 0.3])
    c = torch.tensor([-5.0, 0.0, 0.5, -9.0])
    # kept: a [4, -3], b [2, 1], c [-5, ., ., -9]; votes 1, -2, 0, -9
    assert merge([a, b, c], "ties", density=0.5).tolist() == [3.0, -3.0, 0.0, -9.0]
    assert merge([a, b, c], "ties", density=0.5, majority="frequency").tolist() == [
        3.0,
        1.0,
        0.0,
        -9.0,
    ]
    assert merge([a, b, c], "ties", density=0.5, normalize=False).tolist() == [6.0, -3.0, 0.0, -9.0]
    weighted = merge([a, b, c], "ties", density=0.5, weights=[1.0, 1.0, 2.0])
    assert weighted.tolist() == [-5.0, -3.0, 0.0, -9.0]


def test_untrained_entries_neither_vote_nor_count() -> None:
    """Disjoint shards come through whole, whatever their weights; a mean over all k would shrink
    them.
    """
    rng = torch.Generator().manual_seed(5)
    owner = torch.randint(0, 3, SHAPE, generator=rng)
    whole = torch.randn(SHAPE, generator=rng)
    deltas = [torch.where(owner == i, whole, 0.0) for i in range(3)]
    for method in ("ties", "sign"):
        torch.testing.assert_close(merge(deltas, method), whole)
        torch.testing.assert_close(merge(deltas, method, weights=[0.2, 0.3, 0.5]), whole)
    torch.testing.assert_close(merge(deltas, "linear"), whole / 3)


@pytest.mark.parametrize("method", ["magnitude", "ties"])
def test_a_density_of_rho_trims_nothing_trained(method: str) -> None:
    deltas = shards(3, rho=0.2, seed=4)
    trained = max(int(d.count_nonzero()) for d in deltas) / deltas[0].numel()
    assert torch.equal(merge(deltas, method, density=trained), merge(deltas, method))
    assert not torch.equal(merge(deltas, method, density=trained / 2), merge(deltas, method))


def test_a_vote_that_ends_in_zero_goes_up() -> None:
    a = torch.tensor([2.0, -1.0, 0.0])
    for order in ([a, -a], [-a, a]):
        assert merge(order, "ties").tolist() == [2.0, 1.0, 0.0]
        assert merge(order, "sign", majority="frequency").tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("density", [0.01, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trimming_keeps_exactly_as_many_as_it_says(density: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    crowded = torch.randint(1, 4, (40, 25)).to(dtype) * torch.where(torch.rand(40, 25) < 0.5, -1, 1)
    keep = keep_largest(crowded, density)
    assert keep is not None and int(keep.sum()) == round(density * 1000)
    assert crowded[keep].abs().min() >= crowded[~keep].abs().max()
    edge = torch.nonzero((crowded.abs() == crowded[keep].abs().min()).flatten()).flatten()
    flags = keep.flatten()[edge].tolist()
    assert flags == sorted(flags, reverse=True), "of equal entries the first stay"


def test_dare_drops_at_random_and_keeps_the_expectation() -> None:
    delta = torch.ones(400, 250)
    merged = merge([delta], "dare", density=0.2, seed=1)
    assert set(merged.unique().tolist()) == {0.0, 5.0}
    assert abs(merged.mean().item() - 1) < 0.03
    assert torch.equal(merge([delta], "dare_ties", density=0.2, seed=1), merged)
    assert torch.equal(merge([delta], "dare_linear", density=0.2, seed=1), merged)
    assert torch.equal(merge([delta], "dare", density=1.0), delta)


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_dare_follows_its_seed_alone(method: str) -> None:
    deltas = [torch.randn(30, 30, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    state = torch.get_rng_state()
    first = merge(deltas, method, density=0.5, seed=7)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    torch.manual_seed(99)
    assert torch.equal(merge(deltas, method, density=0.5, seed=7), first)
    assert not torch.equal(merge(deltas, method, density=0.5, seed=8), first)
    same = merge([deltas[0], deltas[0]], "dare", density=0.5, weights=[1, -1])
    assert same.any(), "each delta draws its own mask"


def test_slerp_stays_on_the_arc() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    for t in (0.0, 0.25, 0.5, 1.0):
        expected = [2 * math.cos(t * math.pi / 2), 2 * math.sin(t * math.pi / 2)]
        torch.testing.assert_close(merge([a, b], "slerp", t=t), torch.tensor([expected]))
    assert torch.equal(merge([a, b], "slerp"), merge([a, b], "slerp", t=0.5))
    assert torch.equal(merge([a, b], "slerp", weights=[3, 1]), merge([a, b], "slerp", t=0.25))
    tiny = merge([a * 1e-25, b * 1e-25], "slerp") * 1e25
    torch.testing.assert_close(tiny, merge([a, b], "slerp"))


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1.0), (3.0, 1.5), (-1.0, 0.5), (0.0, 0.75)])
def test_slerp_is_a_line_when_there_is_no_arc(factor: float, expected: float) -> None:
    a = torch.randn(50, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(merge([a, factor * a], "slerp", t=0.25), expected * a)
    assert not merge([0 * a, 0 * a], "slerp").any()


@pytest.mark.parametrize("method", ANY_NUMBER)
def test_order_and_scale_of_weights(method: str) -> None:
    deltas = [torch.randn(12, 9, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    merged = merge(deltas, method, weights=[0.2, 0.3, 0.5])
    turned = merge(deltas[::-1], method, weights=[0.5, 0.3, 0.2])
    torch.testing.assert_close(merged, turned)
    larger = merge(deltas, method, weights=[2.0, 3.0, 5.0])
    torch.testing.assert_close(larger, merged if MERGES[method].normalize else 10 * merged)


A, B = torch.ones(2, 3), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("deltas", "settings", "message"),
    [
        ([A], {"method": "tiess"}, "Did you mean 'ties'"),
        ([], {}, "no deltas"),
        ([A, B], {}, r"delta 2 has shape \(3, 2\), the first \(2, 3\)"),
        ([A, A / 0], {}, "delta 2 .* not finite"),
        ([A.long()], {}, "int64"),
        ([A, A.to("meta")], {}, "on meta"),
        ([A, A], {"weights": [1.0]}, "got 1 weights for 2"),
        ([A], {"weights": [math.nan]}, "finite"),
        ([A, A], {"method": "linear", "weights": [1, -1]}, "sum to 0"),
        ([A], {"majority": "most"}, "majority"),
        ([A], {"scale": math.inf}, "scale"),
        *(([A], {"density": d}, "density") for d in (0.0, -0.1, 1.01, math.nan)),
        *(([A] * n, {"method": "slerp"}, f"two deltas, got {n}") for n in (1, 3)),
        ([A, A], {"method": "slerp", "t": 2.0}, "t is 2"),
    ],
)
def test_errors_say_what_was_given(
    deltas: list[Tensor], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        merge(deltas, **settings)


@pytest.mark.parametrize(
    ("rho", "k"), [(0.2, 2), (0.33, 3), (0.5, 5), (0.0, 2), (1.0, 3), (0.7, 1)]
)
def test_overlap_against_a_simulation(rho: float, k: int) -> None:
    size = 200_000
    masks = torch.rand(k, size, generator=torch.Generator().manual_seed(k)) < rho
    overlap = expected_overlap(rho, k)
    counts = torch.bincount(masks.sum(dim=0), minlength=k + 1) / size
    torch.testing.assert_close(counts, torch.tensor(overlap.exactly), atol=0.006, rtol=0)
    assert math.isclose(sum(overlap.exactly), 1)
    assert math.isclose(overlap.exactly[k], overlap.every) and math.isclose(overlap.every, rho**k)
    assert math.isclose(overlap.union, 1 - overlap.exactly[0]) and math.isclose(
        overlap.pair, rho**2
    )
    in_all = int(masks.all(dim=0).sum())
    assert abs(in_all - overlap.every * size) <= 4 * overlap.deviation(size)


def test_overlap_errors() -> None:
    with pytest.raises(ConfigError, match="rho"):
        expected_overlap(1.2, 2)
    with pytest.raises(ConfigError, match="k is 0"):
        expected_overlap(0.2, 0)
