"""A-GEM, averaged GEM: a step may not raise the loss on a draw of the memory.

Chaudhry et al., arXiv 1812.00420: with g_ref the gradient on examples drawn from all earlier tasks,
a direction u with <u, g_ref> < 0 becomes u - <u, g_ref> / ||g_ref||^2 g_ref.

What departs from the paper: as with GEM, u is what the optimizer would do. The memory is ER's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from errata.continual.forward import gradients_of
from errata.continual.plugin import Gradients
from errata.continual.replay.er import Er
from errata.continual.replay.gem import nearest


class AGem(Er):
    """Projects each step so that the loss on a draw of the memory does not rise."""

    kind = "gradient hook"
    paper = "arXiv 1812.00420"
    earlier: Sequence[Gradients] = ()

    def sample(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the examples alone: the memory only says where not to go."""
        return items

    def gradient(self, gradients: Gradients, again: Callable[[], Gradients]) -> Gradients:
        """Take the gradient on a draw of the memory."""
        drawn = self.memory.draw(self.config.batch, self.generator)
        self.earlier = []
        if drawn:
            loss = self.learner.forward([self.remembered(place) for place in drawn]).losses.mean()
            self.earlier = [gradients_of(loss, list(self.parameters.values()))]
        return gradients

    def step(self, change: Gradients, gradients: Gradients) -> Gradients:
        """Return the nearest change that does not raise that loss."""
        return nearest(change, list(self.earlier))
