"""`QuestionSpace`: the ratio is that of Gaussians, and the discriminant finds what is shared."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.distributions import MultivariateNormal

from errata.methods.association.folio.question_space import FORM, QuestionSpace, fit_space

HIDDEN, RELATIONS, EACH = 24, 60, 8


def wordings(seed: int, relations: int = RELATIONS) -> tuple[torch.Tensor, list[int], list[str]]:
    """States, in two views, that hold what is asked in 4 dimensions, and much else in 20."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(9))
    asked = 3 * torch.randn(relations, 4, generator=draw)
    labels = [number for number in range(relations) for _ in range(EACH)]
    noise = torch.randn(len(labels), 2, HIDDEN, generator=draw)
    noise[..., :4] *= 0.3
    noise[..., 4:] *= 2
    noise[..., :4] += asked[labels][:, None]
    kinds = ["person" if number % 2 else "place" for number in labels]
    return noise @ mixing + 5, labels, kinds


def test_the_ratio_is_that_of_one_gaussian_to_two() -> None:
    shared = torch.tensor([[0.2, 0.7, 0.95], [0.5, 0.1, 0.3]])
    axes, spread = torch.eye(3).repeat(2, 1, 1), torch.tensor([2.0, 0.5])
    space = QuestionSpace(torch.zeros(2, 3), axes, shared, spread, 0.5)
    one, other = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(5, 2)
    for view, place in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        share = float(shared[view, place])
        pair = torch.stack([one[:, view, place], other[:, view, place]], -1)
        together = MultivariateNormal(torch.zeros(2), torch.tensor([[1, share], [share, 1]]))
        apart = MultivariateNormal(torch.zeros(2), torch.eye(2))
        expected[:, view] += together.log_prob(pair) - apart.log_prob(pair)
    torch.testing.assert_close(space.ratios(one, other), expected, atol=1e-4, rtol=1e-4)
    scores = space.scores(one, other)
    sums = (expected / spread).sum(-1)
    torch.testing.assert_close(scores, (sums - 0.5).sigmoid(), atol=1e-4, rtol=1e-4)
    less = space.scores(one, other, torch.full((5,), 0.5))
    torch.testing.assert_close(less, (sums - 0.5 - FORM / 2).sigmoid(), atol=1e-4, rtol=1e-4)
    at = dataclasses.replace(space, boundary=float(sums[0])).scores(one[0], other[0])
    assert float(at) == pytest.approx(0.5, abs=1e-4)


def test_a_vector_has_one_length_whatever_the_states_unit() -> None:
    states, labels, kinds = wordings(0)
    for factor in (1.0, 1000.0):
        space = fit_space(factor * states, labels, kinds, 0.02)
        vectors = space.vectors(factor * states)
        torch.testing.assert_close(vectors.square().mean(-1), torch.ones(len(states), 2))
    assert vectors.shape[-1] <= HIDDEN


@pytest.mark.parametrize(("false", "found"), [(0.02, 0.4), (0.2, 0.9)])
def test_relations_that_were_never_seen_are_told_apart(false: float, found: float) -> None:
    """At the share of false pairs that was asked for, many pairs of one relation are found."""
    space = fit_space(*wordings(0), false)
    states, labels, kinds = wordings(1)
    vectors, marks = space.vectors(states), torch.tensor(labels)
    scores = space.scores(vectors[:, None], vectors[None])
    one = marks[:, None] == marks[None]
    kind = torch.tensor([[this == that for that in kinds] for this in kinds])
    itself = torch.eye(len(labels), dtype=torch.bool)
    routed = float((scores[~one & kind] >= 0.5).float().mean())
    assert false / 3 < routed < 3 * false
    assert float((scores[one & ~itself] >= 0.5).float().mean()) > found
    assert bool((scores.diagonal() >= 0.5).all())


def test_what_two_prompts_have_in_common_counts_in_the_boundary_and_weights_in_the_unit() -> None:
    states, labels, kinds = wordings(0)
    plain = fit_space(states, labels, kinds, 0.02)
    form = fit_space(states, labels, kinds, 0.02, form=lambda one, other: 1.0)
    assert form.boundary == pytest.approx(plain.boundary - FORM, abs=1e-4)
    weighed = fit_space(states, labels, kinds, 0.02, (2.0, 0.5))
    torch.testing.assert_close(weighed.spread, plain.spread / torch.tensor([2.0, 0.5]))
    ratios = torch.tensor([[1.0, 3.0]])
    expected = (2 * ratios[0, 0] / plain.spread[0] + ratios[0, 1] / plain.spread[1] / 2)[None]
    torch.testing.assert_close(weighed.sums(ratios), expected)


def test_fewer_wordings_than_dimensions_are_enough_to_fit() -> None:
    states, labels, kinds = wordings(2, relations=6)
    few = [place for place, label in enumerate(labels) if place % EACH < 3]
    space = fit_space(states[few], [labels[p] for p in few], [kinds[p] for p in few], 0.1)
    assert space.projection.shape == (2, HIDDEN, 5) and bool(space.projection.isfinite().all())


def test_a_smaller_share_puts_the_boundary_higher_with_few_pairs_too() -> None:
    """The tail of a few dozen pairs is extrapolated; their last one is not all there is."""
    states, labels, _ = wordings(3, relations=6)
    few = [place for place in range(len(labels)) if place % EACH < 3]
    known, one = [labels[place] for place in few], ["person"] * len(few)
    shares = (0.3, 0.05, 0.01, 0.001)
    found = [fit_space(states[few], known, one, share).boundary for share in shares]
    assert found == sorted(set(found))
