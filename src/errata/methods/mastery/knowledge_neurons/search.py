"""Which neurons an answer hangs on: the coarse set of one prompt, refined over several."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor

from errata.errors import PromptTooLongError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.methods.mastery.knowledge_neurons.attribution import Tokens, attributions
from errata.methods.mastery.knowledge_neurons.config import KnowledgeNeuronsConfig

Neuron = tuple[int, int]
"""(block, place of its activation among the inputs of the block's value matrix)."""


def fitting(lm: LM, prompts: Iterable[str], before: Tokens, answer: Tokens) -> list[Row]:
    """Return rows of prompts, each with the answer's tokens as target, that fit the context.

    Args:
        lm: the model.
        prompts: questions.
        before: tokens behind each prompt that belong to the answer, and are not searched for.
        answer: the target.
    """
    rows = []
    for prompt in prompts:
        with contextlib.suppress(PromptTooLongError):
            ids = (*lm.encode_prompt(prompt), *before)
            if answer and len(ids) + len(answer) <= (lm.context_length or math.inf):
                rows.append(Row((*ids, *answer), len(ids), len(answer)))
    return rows


def found_in(lm: LM, row: Row, config: KnowledgeNeuronsConfig) -> set[Neuron]:
    """Return the coarse set of one prompt and its answer."""
    layers = config.blocks(lm)
    return coarse(attributions(lm, row, layers, config.steps), layers, config.threshold)


def by_block(neurons: Iterable[Neuron]) -> dict[int, list[int]]:
    """Return the neurons' places, by block."""
    places: dict[int, list[int]] = {}
    for layer, place in neurons:
        places.setdefault(layer, []).append(place)
    return places


def coarse(scores: Tensor, layers: Sequence[int], threshold: float) -> set[Neuron]:
    """Return the neurons whose attribution is above a share of the largest.

    Args:
        scores: (blocks, d_in).
        layers: the numbers of the blocks.
        threshold: t, that share.
    """
    most = float(scores.max())
    if most <= 0:
        return set()
    found = (scores > threshold * most).nonzero().tolist()
    return {(layers[block], place) for block, place in found}


def refined(
    found: Sequence[set[Neuron]], share: float, negatives: Iterable[set[Neuron]] = ()
) -> list[Neuron]:
    """Return the neurons that more than a share of the prompts have, or all, and no negative has.

    Args:
        found: the coarse set of each prompt that asks for the fact.
        share: p.
        negatives: the coarse sets of prompts that ask for something else.
    """
    if not found:
        return []
    counts = Counter(neuron for each in found for neuron in each)
    needed = min(share * len(found), len(found) - 1)
    others = {neuron for each in negatives for neuron in each}
    return sorted(
        neuron for neuron, count in counts.items() if count > needed and neuron not in others
    )
