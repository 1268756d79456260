"""SAM, sharpness-aware minimisation: the gradient is that of the worst point near by.

Foret et al., arXiv 2010.01412; against forgetting: Mehta et al., "An Empirical Investigation of the
Role of Pre-training in Lifelong Learning", arXiv 2112.09153. The gradient g is taken again at W +
`radius` * g / ||g||, and followed from W, so that what is found is flat and later tasks cost it
less. Nothing of earlier tasks is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from errata.config import NonNegativeFloat
from errata.continual.config import LearningConfig
from errata.continual.forward import dot, set_to
from errata.continual.plugin import Gradients, Plugin


@dataclass(frozen=True)
class SamSettings(LearningConfig):
    """Settings of SAM.

    Attributes:
        radius: rho.
    """

    radius: NonNegativeFloat = 0.05


class Sam(Plugin):
    """Follows the gradient of the worst point near by."""

    config_class = SamSettings
    kind = "gradient hook"
    paper = "arXiv 2010.01412"
    config: SamSettings

    def gradient(self, gradients: Gradients, again: Callable[[], Gradients]) -> Gradients:
        """Return the gradient at the worst point."""
        length = float(dot(gradients, gradients).sqrt().clamp(min=1e-30))
        moved = {
            name: each.detach() + self.config.radius / length * gradient
            for (name, each), gradient in zip(self.parameters.items(), gradients, strict=True)
        }
        with set_to(self.parameters, moved):
            return again()
