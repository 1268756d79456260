"""Continual learning: the plug-ins against closed forms, on small linear models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from errata.continual.forward import Forward, gradients_of
from errata.continual.measures import summary
from errata.continual.memory import Reservoir
from errata.continual.optimisation.gpm import Gpm, GpmSettings
from errata.continual.optimisation.ogd import Ogd, OgdSettings
from errata.continual.optimisation.sam import Sam, SamSettings
from errata.continual.plugin import Plugin
from errata.continual.regularisation.ewc import Ewc, EwcSettings
from errata.continual.regularisation.lwf import Lwf, LwfSettings
from errata.continual.regularisation.mas import Mas, MasSettings
from errata.continual.regularisation.si import Si, SiSettings
from errata.continual.replay.a_gem import AGem
from errata.continual.replay.derpp import Derpp, DerppSettings
from errata.continual.replay.er import Er, ErSettings
from errata.continual.replay.gem import Gem, GemSettings, nearest
from errata.continual.replay.mir import Mir, MirSettings
from errata.continual.trainer import learn
from errata.solvers.projector import Projector
from errata.solvers.quadratic import nonnegative_minimum

Item = tuple[Tensor, Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Regression:
    """y = W x with half the squared error as loss; an example is (x, y)."""

    def __init__(self, d_in: int, d_out: int = 1) -> None:
        self.weight = torch.zeros(d_out, d_in, dtype=torch.float64, requires_grad=True)
        self.parameters = {"weight": self.weight}

    def forward(self, items: Sequence[Item]) -> Forward:
        x, y = (torch.stack([item[part] for item in items]) for part in (0, 1))
        values = x @ self.weight.T
        losses = (values - y).square().sum(1) / 2
        return Forward(values, losses, None, torch.arange(len(items)))

    def keys(self, items: Sequence[Item]) -> dict[str, Tensor]:
        return {"weight": torch.stack([x for x, _ in items])}

    def transposed(self, name: str) -> bool:
        return False


class Logistic(Regression):
    """Softmax regression; an example is (x, label)."""

    def forward(self, items: Sequence[Item]) -> Forward:
        x, y = (torch.stack([item[part] for item in items]) for part in (0, 1))
        values = x @ self.weight.T
        losses = F.cross_entropy(values, y, reduction="none")
        return Forward(values, losses, y, torch.arange(len(items)))


def regression(n: int, d: int, seed: int, d_out: int = 1) -> list[Item]:
    return list(zip(drawn(n, d, seed=seed), drawn(n, d_out, seed=seed + 100), strict=True))


def labelled(n: int, d: int, classes: int, seed: int) -> list[Item]:
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))
    return list(zip(drawn(n, d, seed=seed), labels, strict=True))


def taught(plugin: Plugin, *tasks: Sequence[Item]) -> Plugin:
    for items in tasks:
        learn(plugin, items, lambda *_: None)
    return plugin


def stacked(items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


FULL = {"optimizer": "sgd", "batch": 64, "lr": 0.5, "epochs": 120}
"""Plain gradient descent on all examples of a task at once."""


@pytest.mark.parametrize("decay", [None, 0.5])
def test_ewc_ends_at_the_optimum_of_its_quadratics(decay):
    one, two, three = (regression(12, 3, seed) for seed in range(3))
    learner = Regression(3)
    plugin = Ewc(EwcSettings(strength=0.7, decay=decay, **FULL), learner)
    anchors, fishers = [], []
    for items in (one, two, three):
        x, y = stacked(items)
        hessian, pull = x.T @ x / len(x), x.T @ y[:, 0] / len(x)
        kept = list(zip(fishers, anchors, strict=True))
        if decay is not None and kept:
            total = fishers[0]
            for fisher in fishers[1:]:
                total = decay * total + fisher
            kept = [(total, anchors[-1])]
        for fisher, anchor in kept:
            hessian, pull = hessian + 0.7 * fisher.diag(), pull + 0.7 * fisher * anchor
        optimum = torch.linalg.solve(hessian, pull)
        taught(plugin, items)
        torch.testing.assert_close(learner.weight[0].detach(), optimum, rtol=1e-6, atol=1e-9)
        anchors.append(optimum)
        fishers.append(((x @ optimum - y[:, 0])[:, None] * x).square().mean(0))
    assert len(plugin.kept) == (3 if decay is None else 1)


def test_si_is_the_path_integral_of_the_loss():
    """On a quadratic with axes of its own, each weight did half h ((a - w)^2 - (b - w)^2)."""
    scales, goal = torch.tensor([2.0, 1.0, 0.5]).double(), torch.tensor([0.3, -0.2, 0.1]).double()
    items = [
        (axis * scale * math.sqrt(3), (goal @ axis * scale * math.sqrt(3))[None])
        for axis, scale in zip(torch.eye(3).double(), scales, strict=True)
    ]
    learner = Regression(3)
    settings = SiSettings(damping=1e-3, strength=1.0, **{**FULL, "lr": 0.002, "epochs": 100})
    plugin = taught(Si(settings, learner), items)
    end = learner.weight.detach()[0]
    did = scales.square() / 2 * (goal.square() - (end - goal).square())
    torch.testing.assert_close(plugin.path[0][0], did, rtol=5e-3, atol=1e-9)
    omega = did / (end.square() + 1e-3)
    torch.testing.assert_close(plugin.omega[0][0], omega, rtol=5e-3, atol=1e-9)
    plugin.begin(regression(4, 3, 1))
    with torch.no_grad():
        learner.weight += 0.1
    assert float(plugin.penalty().detach()) == pytest.approx(float(0.01 * omega.sum()), rel=5e-3)


def test_mas_is_the_mean_sensitivity_of_the_outputs_length():
    items = regression(6, 3, 0, d_out=2)
    learner = Regression(3, 2)
    plugin = taught(Mas(MasSettings(**{**FULL, "epochs": 3}), learner), items)
    x, _ = stacked(items)
    outputs = x @ learner.weight.detach().T
    expected = (2 * outputs[:, :, None] * x[:, None, :]).abs().mean(0)
    torch.testing.assert_close(plugin.omega[0], expected)


def test_lwf_adds_the_divergence_from_the_model_before_the_task():
    learner, items = Logistic(3, 4), labelled(5, 3, 4, seed=1)
    plugin = Lwf(LwfSettings(strength=0.6, temperature=2.0), learner)
    plugin.begin(items)
    x, y = stacked(items)
    assert torch.equal(plugin.loss(items), F.cross_entropy(x @ learner.weight.T, y))
    with torch.no_grad():
        learner.weight.copy_(drawn(4, 3, seed=2))
    plugin.begin(items)
    before = (x @ learner.weight.detach().T / 2).softmax(-1)
    with torch.no_grad():
        learner.weight += drawn(4, 3, seed=3)
    now = x @ learner.weight.T
    apart = (before * (before.log() - (now / 2).log_softmax(-1))).sum(1).mean()
    expected = F.cross_entropy(now, y) + 0.6 * 4 * apart
    torch.testing.assert_close(plugin.loss(items), expected)


def test_a_reservoir_holds_each_example_with_the_same_chance():
    counts, runs = torch.zeros(20), 2000
    for seed in range(runs):
        memory, generator = Reservoir(5), torch.Generator().manual_seed(seed)
        for number in range(20):
            memory.offer((0, number), generator)
        assert len({*memory.places}) == 5
        for _, number in memory.places:
            counts[number] += 1
    expected = runs * 5 / 20
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 43.8  # the 99.9th percentile with 19 degrees of freedom


def test_er_mixes_as_many_of_the_memory_into_each_step():
    one, two = regression(10, 2, 0), regression(10, 2, 1)
    plugin = taught(Er(ErSettings(memory=6, epochs=1), Regression(2)), one)
    plugin.begin(two)
    seen = plugin.sample(two[:4])
    assert seen[:4] == two[:4] and len(seen) == 8
    places = [next(n for n, item in enumerate(one) if item is each) for each in seen[4:]]
    assert len({*places}) == 4 and {(0, place) for place in places} <= {*plugin.memory.places}


def test_derpp_matches_logits_and_learns_again():
    one, two = labelled(6, 3, 4, seed=0), labelled(4, 3, 4, seed=1)
    learner = Logistic(3, 4)
    settings = DerppSettings(memory=10, alpha=0.3, beta=0.8, epochs=2, lr=0.1, optimizer="sgd")
    plugin = taught(Derpp(settings, learner), one)
    then = learner.weight.detach().clone()
    plugin.begin(two)
    with torch.no_grad():
        learner.weight += drawn(4, 3, seed=5)
    items = plugin.sample(two)
    dark, again = plugin._drawn
    assert len(dark) == len(again) == 2
    x = torch.stack([one[plugin.memory.places[place][1]][0] for place in dark])

    def logits(weight: Tensor) -> Tensor:
        out = x @ weight.T
        return out - out.mean(-1, keepdim=True)

    expected = learner.forward(two).losses.mean()
    expected = expected + 0.3 * F.mse_loss(logits(learner.weight), logits(then).half().double())
    replayed = [one[plugin.memory.places[place][1]] for place in again]
    expected = expected + 0.8 * learner.forward(replayed).losses.mean()
    torch.testing.assert_close(plugin.loss(items), expected)


def test_mir_replays_what_the_step_would_hurt_most():
    one, two = regression(12, 3, 0), regression(4, 3, 1)
    learner = Regression(3)
    plugin = taught(Mir(MirSettings(memory=12, candidates=12, lr=0.05, epochs=5), learner), one)
    plugin.begin(two)
    x, y = stacked(one)
    gradient = gradients_of(learner.forward(two).losses.mean(), [learner.weight])[0]
    moved = learner.weight - 0.05 * math.sqrt(3) * gradient / gradient.norm()
    rises = ((x @ moved.T - y).square() - (x @ learner.weight.T - y).square())[:, 0] / 2
    worst = {int(each) for each in rises.topk(4).indices}
    assert {n for n, item in enumerate(one) if any(item is each for each in plugin.sample(two)[4:])
            } == worst  # fmt: skip


# steps that are projected


def brute_force(matrix: Tensor, linear: Tensor) -> Tensor:
    """The minimum over all sets of unknowns that are free."""
    best, value = torch.zeros_like(linear), 0.0
    for size in range(1, len(linear) + 1):
        for free in itertools.combinations(range(len(linear)), size):
            index = list(free)
            found = torch.zeros_like(linear)
            found[index] = torch.linalg.lstsq(matrix[index][:, index], -linear[index]).solution
            now = float(found @ matrix @ found / 2 + linear @ found)
            if bool((found >= 0).all()) and now < value:
                best, value = found, now
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_dual_is_solved_exactly(seed):
    rows = drawn(5, 7, seed=seed)
    linear = rows @ drawn(7, seed=seed + 50)
    expected = brute_force(rows @ rows.T, linear)
    torch.testing.assert_close(nonnegative_minimum(rows @ rows.T, linear), expected)


def test_the_dual_of_nothing_and_of_the_same_row_twice():
    assert nonnegative_minimum(torch.zeros(0, 0), torch.zeros(0)).shape == (0,)
    row = drawn(1, 4)
    found = nonnegative_minimum((row @ row.T).expand(2, 2), torch.tensor([-1.0, -1.0]).double())
    assert float(found.min()) >= 0
    assert float(found.sum() * row.square().sum()) == pytest.approx(1.0)


def test_gem_goes_the_nearest_way_that_raises_no_earlier_loss():
    axes = torch.eye(4).double()
    change = torch.tensor([1.0, 2.0, -3.0, 4.0]).double()
    assert nearest([change], [])[0] is change
    assert nearest([change], [[axes[2]]])[0] is change  # it lowers that loss
    (found,) = nearest([change], [[axes[0]], [3 * axes[1]], [axes[2]]])
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, -3.0, 4.0]).double())
    for seed in range(6):
        earlier, change = drawn(3, 6, seed=seed), drawn(6, seed=seed + 10)
        (found,) = nearest([change], [[each] for each in earlier])
        assert bool((earlier @ found <= 1e-9).all())
        weights = brute_force(earlier @ earlier.T, -earlier @ change)
        torch.testing.assert_close(found, change - weights @ earlier)


def test_gem_and_a_gem_take_the_gradients_where_the_step_begins():
    one, two = regression(6, 3, 0), regression(6, 3, 1)
    common = {**FULL, "epochs": 30, "batch": 6}
    for kind, settings in ((Gem, GemSettings(per_task=6, **common)),
                           (AGem, ErSettings(memory=6, **common))):  # fmt: skip
        learner = Regression(3)
        plugin = taught(kind(settings, learner), one)
        plugin.begin(two)
        values = [learner.weight]
        own = gradients_of(learner.forward(two).losses.mean(), values)
        plugin.gradient(own, list)
        reference = gradients_of(learner.forward(one).losses.mean(), values)[0]
        made = 3 * reference + drawn(1, 3, seed=7) * reference.norm()
        rise = float((reference * made).sum())
        assert rise > 0
        (change,) = plugin.step([made], own)
        expected = made - rise / reference.square().sum() * reference
        torch.testing.assert_close(change, expected)


def test_a_projector_keeps_what_keys_span_and_the_energy_that_is_asked_for():
    axes = torch.linalg.qr(drawn(6, 6))[0]
    keys = torch.stack([3 * axes[0], 2 * axes[1], axes[2]])
    projector = Projector(6)
    projector.fit(keys)
    change = drawn(4, 6, seed=1)
    torch.testing.assert_close(projector.project(change) @ keys.T, torch.zeros(4, 3).double())
    torch.testing.assert_close(projector.project(change) @ axes[3:].T, change @ axes[3:].T)
    torch.testing.assert_close(projector.free @ projector.free.T,
                               projector.project(torch.eye(6).double()))  # fmt: skip
    assert projector.rank == 3
    projector.fit(keys)  # nothing new
    assert projector.rank == 3
    for energy, rank in ((0.6, 5), (9 / 14 + 0.01, 4), (0.99, 3)):
        partial = Projector(6)
        partial.fit(keys, energy)
        assert partial.rank == rank
    weak = Projector(6)  # what is held already counts
    weak.fit(keys[:1])
    weak.fit(keys, 9 / 14 - 0.01)
    assert weak.rank == 5


@pytest.mark.parametrize(("kind", "settings"), [(Ogd, OgdSettings), (Gpm, GpmSettings)])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_projected_steps_leave_old_answers_and_learn_new_ones(kind, settings, optimizer):
    axes = torch.linalg.qr(drawn(6, 6))[0]
    old, new = drawn(8, 2) @ axes[:2], drawn(8, 6, seed=1)
    one, two = ([(x, drawn(1, seed=n)) for n, x in enumerate(part)] for part in (old, new))
    learner = Regression(6)
    more = {"energy": 1.0} if kind is Gpm else {"per_task": 8}
    rate = {"lr": 0.05, "epochs": 30, "batch": 4, "optimizer": optimizer}
    plugin = taught(kind(settings(**more, **rate), learner), one)
    before, loss = learner.forward(one).values, learner.forward(two).losses.mean().item()
    taught(plugin, two)
    torch.testing.assert_close(learner.forward(one).values, before)
    assert learner.forward(two).losses.mean().item() < 0.8 * loss


def test_sam_takes_the_gradient_of_the_worst_point_near_by():
    items, learner = regression(6, 3, 0), Regression(3)
    x, y = stacked(items)
    hessian, pull = x.T @ x / 6, (x.T @ y / 6).T
    own = learner.weight @ hessian - pull
    plugin = Sam(SamSettings(radius=0.3), learner)
    found = plugin.gradient(
        [own.detach()],
        lambda: gradients_of(learner.forward(items).losses.mean(), [learner.weight]),
    )[0]
    worst = learner.weight + 0.3 * own / own.norm()
    torch.testing.assert_close(found, (worst @ hessian - pull).detach())
    assert torch.equal(learner.weight, torch.zeros(1, 3).double())


# what a run is told to have


def test_measures_of_a_matrix_by_hand():
    matrix = [[0.9, 0.1, 0.0], [0.5, 0.8, 0.2], [0.6, 0.4, 1.0]]
    found = summary(matrix, [0.0, 0.1, 0.1])
    assert found == pytest.approx({
        "average_accuracy": 2 / 3,
        "backward_transfer": (-0.3 - 0.4) / 2,
        "forgetting": (0.3 + 0.4) / 2,
        "plasticity": 0.9,
        "forward_transfer": (0.0 + 0.1) / 2,
    })  # fmt: skip
    assert summary([[0.5]], [0.1])["backward_transfer"] is None
