"""What is minimised on what is to be forgotten, by name; a loss of about a paper each.

`before` is the model before it was trained, D_f what is forgotten; p(y) is the probability of a
passage's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from errata.unlearning.config import UnlearningConfig
from errata.unlearning.scored import Side

Loss = Callable[[Side, Side | None, UnlearningConfig], Tensor]
"""(the passages, the same questions with a refusal, settings) -> a loss, a scalar."""


@dataclass(frozen=True)
class Objective:
    """A way to forget.

    Attributes:
        loss: on what is to be forgotten; None where states are steered instead (RMU).
        paper: where it is from.
        own: its settings.
        retains: whether what is to be kept is trained on, too.
        refuses: whether it needs the questions with a refusal; then documents cannot be forgotten.
        negates: whether what was learned is taken away from the model at the end.
    """

    loss: Loss | None
    paper: str
    own: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    retains: bool = True
    refuses: bool = False
    negates: bool = False


def nll(side: Side) -> Tensor:
    """Return the mean negative log-probability of a token."""
    return -side.now.log_probs.mean()


def kl(side: Side) -> Tensor:
    """Return the mean KL(before || now) at a token."""
    before = side.before.logits.log_softmax(-1)
    now = side.now.logits.log_softmax(-1)
    return F.kl_div(now, before, reduction="none", log_target=True).sum(-1).mean()


def _descent(forget: Side, _: Side | None, __: UnlearningConfig) -> Tensor:
    return nll(forget)


def _ascent(forget: Side, _: Side | None, __: UnlearningConfig) -> Tensor:
    return -nll(forget)


def _weighted_ascent(forget: Side, _: Side | None, config: UnlearningConfig) -> Tensor:
    """-NLL, each token weighted by p^beta: what is forgotten already counts little."""
    log_probs = forget.now.log_probs
    return ((config.beta * log_probs).exp().detach() * log_probs).mean()


def _npo(forget: Side, _: Side | None, config: UnlearningConfig) -> Tensor:
    """-2/beta log sigmoid(-beta log(p / p_before)): bounded below, unlike ascent."""
    ratio = forget.before.nll - forget.now.nll  # log(p / p_before)
    return -2 / config.beta * F.logsigmoid(-config.beta * ratio).mean()


def _simnpo(forget: Side, _: Side | None, config: UnlearningConfig) -> Tensor:
    """-2/beta log sigmoid(beta (NLL / length - delta)): no model of before, no bias to length."""
    mean = forget.now.nll / forget.now.lengths
    return -2 / config.beta * F.logsigmoid(config.beta * (mean - config.delta)).mean()


def _refusal(_: Side, refusal: Side | None, __: UnlearningConfig) -> Tensor:
    return nll(_given(refusal))


def _dpo(forget: Side, refusal: Side | None, config: UnlearningConfig) -> Tensor:
    """The refusal is preferred to the answer, each against the model of before."""
    refused = _given(refusal)
    wins, loses = (side.before.nll - side.now.nll for side in (refused, forget))
    return -2 / config.beta * F.logsigmoid(config.beta * (wins - loses)).mean()


def _undial(forget: Side, _: Side | None, config: UnlearningConfig) -> Tensor:
    """Distil the model of before, with the true token's logit lowered by beta."""
    lowered = torch.zeros_like(forget.before.logits)
    lowered.scatter_(-1, forget.before.labels[:, None], config.beta)
    teacher = (forget.before.logits - lowered).softmax(-1)
    return F.cross_entropy(forget.now.logits, teacher)


def _uniform(forget: Side, _: Side | None, __: UnlearningConfig) -> Tensor:
    """KL(uniform || p): every token becomes as likely as any other."""
    log_probs = forget.now.logits.log_softmax(-1)
    return -log_probs.mean(-1).mean() - math.log(log_probs.shape[-1])


def _given(refusal: Side | None) -> Side:
    if refusal is None:
        raise ValueError("this objective needs the questions with a refusal")
    return refusal


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "ascent": Objective(_ascent, "gradient ascent", retains=False),
        "graddiff": Objective(_ascent, "gradient difference, arXiv 2203.12817"),
        "npo": Objective(_npo, "NPO, arXiv 2404.05868"),
        "simnpo": Objective(
            _simnpo, "SimNPO, arXiv 2410.07163", {"beta": 4.5, "forget_weight": 0.125}
        ),
        "idk": Objective(_refusal, "refusals learned, TOFU, arXiv 2401.06121", refuses=True),
        "dpo": Objective(_dpo, "DPO to a refusal, arXiv 2305.18290 and 2404.05868", refuses=True),
        "rmu": Objective(
            None, "RMU, arXiv 2403.03218", {"trains": "values", "lr": 1e-4, "retain_weight": 10.0}
        ),
        "undial": Objective(_undial, "UNDIAL, arXiv 2402.10052", {"beta": 10.0}),
        "wga": Objective(_weighted_ascent, "WGA, arXiv 2502.19301", {"beta": 1.0}),
        "negation": Objective(
            _descent, "task vectors, arXiv 2212.04089", retains=False, negates=True
        ),
        "subnetwork": Objective(
            _uniform,
            "knowledge-critical subnetworks, arXiv 2310.03084",
            {"trains": "masks", "retain": "kl", "forget_weight": 1.5, "epochs": 200},
        ),
    }
)
"""Ways to forget, by name."""
