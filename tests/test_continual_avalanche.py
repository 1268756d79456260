"""EWC, MAS, GEM and A-GEM against Avalanche, which is not needed otherwise (`avalanche-lib`)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_continual import Regression, regression, stacked, taught
from torch.utils.data import TensorDataset

from errata.continual.regularisation.ewc import Ewc, EwcSettings
from errata.continual.regularisation.mas import Mas, MasSettings
from errata.continual.replay.gem import nearest

plugins = pytest.importorskip("avalanche.training.plugins")
STEPS = {"optimizer": "sgd", "batch": 8, "lr": 0.1, "epochs": 5}


def theirs(learner, items):
    """(their model, what their plug-ins read of a strategy) for a task of ours."""
    model = torch.nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(learner.weight)
    x, y = stacked(items)
    data = TensorDataset(x, y, torch.zeros(len(x)))
    return model, SimpleNamespace(
        model=model, device="cpu", train_mb_size=1, experience=SimpleNamespace(dataset=data),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )  # fmt: skip


def test_ewc_has_their_fisher_information_and_twice_their_penalty():
    learner, items = Regression(3, 2), regression(6, 3, 0, d_out=2)
    ours = taught(Ewc(EwcSettings(strength=2 * 0.7, **STEPS), learner), items)
    model, strategy = theirs(learner, items)
    plugin = plugins.EWCPlugin(ewc_lambda=0.7)
    found = plugin.compute_importances(
        model, lambda out, y: (out - y).square().sum() / 2, strategy.optimizer,
        strategy.experience.dataset, "cpu", 1,
    )  # fmt: skip
    torch.testing.assert_close(
        ours.kept[0][0][0], found["weight"].data.double(), rtol=1e-5, atol=1e-7
    )
    plugin.update_importances(found, 0)
    anchor = learner.weight.detach().clone()
    plugin.saved_params[0] = {"weight": SimpleNamespace(expand=lambda _: anchor)}
    with torch.no_grad():
        learner.weight += 0.3
        model.weight += 0.3
    strategy.clock, strategy.loss = SimpleNamespace(train_exp_counter=1), torch.zeros(())
    plugin.before_backward(strategy)
    torch.testing.assert_close(ours.penalty(), strategy.loss.double(), rtol=1e-6, atol=1e-9)


def test_mas_has_their_importance():
    learner, items = Regression(3, 2), regression(6, 3, 0, d_out=2)
    ours = taught(Mas(MasSettings(**STEPS), learner), items)
    _, strategy = theirs(learner, items)
    found = plugins.MASPlugin()._get_importance(strategy)
    torch.testing.assert_close(ours.omega[0], found["weight"].data.double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_gem_and_a_gem_project_as_theirs(seed):
    generator = torch.Generator().manual_seed(seed)
    earlier = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    gradient = torch.randn(8, generator=generator, dtype=torch.float64)
    plugin = plugins.GEMPlugin(4, memory_strength=0.0)
    plugin.G = earlier
    if bool((earlier @ gradient < 0).any()):
        (found,) = nearest([-gradient], [[each] for each in earlier])
        torch.testing.assert_close(
            -found.float(), plugin.solve_quadprog(gradient).float(), rtol=1e-2, atol=5e-3
        )  # they add 1e-3 to the dual's diagonal
    model = torch.nn.Linear(8, 1, bias=False).double()
    model.weight.grad = gradient[None].clone()
    averaged = plugins.AGEMPlugin(4, 4)
    averaged.buffers, averaged.reference_gradients = [None], earlier[0]
    averaged.after_backward(SimpleNamespace(model=model))
    (found,) = nearest([-gradient], [[earlier[0]]])
    torch.testing.assert_close(-found[None], model.weight.grad)
