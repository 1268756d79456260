"""`learn`: the one training loop, for every plug-in and every kind of example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from errata.continual.forward import gradients_of
from errata.continual.plugin import Plugin

CLIPPED = 1.0
"""The largest norm of a step's gradient."""


def learn(plugin: Plugin, items: Sequence[Any], tell: Callable[[int, int], None]) -> None:
    """Let a plug-in's learner learn a task.

    Args:
        plugin: what keeps it from forgetting.
        items: the task's examples.
        tell: called with (steps made, steps) before each step.
    """
    plugin.begin(items)
    _epochs(plugin, items, plugin.config.epochs, tell)
    while epochs := plugin.again():
        _epochs(plugin, items, epochs, tell)
    plugin.end()


def steps_of(plugin: Plugin, items: Sequence[Any]) -> int:
    """Return the steps of an epoch."""
    return -(-len(items) // plugin.config.batch)


def _epochs(
    plugin: Plugin, items: Sequence[Any], epochs: int, tell: Callable[[int, int], None]
) -> None:
    parameters, size = list(plugin.parameters.values()), plugin.config.batch
    if not parameters:
        return
    optimizer = _optimizer(plugin, parameters)
    total, done = epochs * steps_of(plugin, items), 0
    for _ in range(epochs):
        order = torch.randperm(len(items), generator=plugin.generator).tolist()
        for start in range(0, len(order), size):
            tell(done, total)
            part = [items[number] for number in order[start : start + size]]
            _step(plugin, plugin.sample(part), parameters, optimizer)
            done += 1


def _optimizer(plugin: Plugin, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if plugin.config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=plugin.config.lr)
    return torch.optim.AdamW(parameters, lr=plugin.config.lr, weight_decay=0.0)


def _step(
    plugin: Plugin,
    items: Sequence[Any],
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    def gradients() -> list[Tensor]:
        return gradients_of(plugin.loss(items), parameters)

    own = gradients()
    followed = plugin.gradient(own, gradients)
    penalty = plugin.penalty()
    if penalty is not None:
        added = gradients_of(penalty, parameters)
        followed = [one + other for one, other in zip(followed, added, strict=True)]
    for each, gradient in zip(parameters, followed, strict=True):
        each.grad = gradient.clone()
    nn.utils.clip_grad_norm_(parameters, CLIPPED)
    stays = type(plugin).step is Plugin.step
    before = [] if stays else [each.detach().clone() for each in parameters]
    optimizer.step()
    if not stays:
        with torch.no_grad():
            made = [each - then for each, then in zip(parameters, before, strict=True)]
            for each, then, change in zip(parameters, before, plugin.step(made, own), strict=True):
                each.copy_(then + change)
    for each in parameters:
        each.grad = None
