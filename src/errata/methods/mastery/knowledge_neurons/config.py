"""Settings of knowledge neurons, of the search for them as well as of what is done to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from errata.config import Fraction, MethodConfig, NonNegativeFloat, NonNegativeInt, PositiveInt
from errata.errors import ConfigError
from errata.lm import LM


@dataclass(frozen=True)
class KnowledgeNeuronsConfig(MethodConfig):
    """Settings of knowledge neurons.

    Attributes:
        layer: the last of the blocks that are searched; None: the last of all.
        layers: how many blocks are searched, up to `layer`; None: all of them.
        steps: m, the steps of the sum that stands for the integral of a gradient.
        threshold: t, the share of the largest attribution above which a neuron is found.
        share: p, the share of the prompts of which more must find a neuron; at 1, all must.
        tokens: how many tokens of the model's own answer are searched for.
        prefixes: self-generated texts behind which the fact is asked as well.
        prefix_length: tokens of a prefix, at most.
        scale: how far an insert or a modify moves the state behind the prompt, in its lengths.
    """

    method: ClassVar[str] = "knowledge-neurons"

    layers: PositiveInt | None = None
    steps: PositiveInt = 20
    threshold: Fraction = 0.1
    share: Fraction = 0.5
    tokens: PositiveInt = 1
    prefixes: NonNegativeInt = 2
    prefix_length: PositiveInt = 10
    scale: NonNegativeFloat = 0.6

    def blocks(self, lm: LM) -> list[int]:
        """Return the numbers of the blocks of a model that are searched.

        Raises:
            ConfigError: the model has no such blocks.
        """
        last = lm.architecture.n_layers - 1 if self.layer is None else self.layer
        lm.architecture.value_path(last)
        count = self.layers or last + 1
        if count > last + 1:
            raise ConfigError(
                f"layers is {count}, and up to layer {last} there are only {last + 1}; give a "
                "smaller 'layers'."
            )
        return list(range(last - count + 1, last + 1))
