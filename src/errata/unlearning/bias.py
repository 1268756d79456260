"""Debiasing: a prejudice and its opposite become equally likely, or are told apart no more.

`equalise` trains until the two sentences of each pair are equally likely. `leace` takes from states
what tells them apart, in closed form (see `leace.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.hooks import capture_output, replace_output
from errata.progress import OnProgress
from errata.storage.cache import fingerprint
from errata.unlearning.config import UnlearningConfig
from errata.unlearning.detox import BATCH, check_keeps, check_some, self_written
from errata.unlearning.leace import Eraser
from errata.unlearning.objectives import Objective
from errata.unlearning.pairs import SentencePair, sentences
from errata.unlearning.passages import Passage
from errata.unlearning.scored import Side
from errata.unlearning.training import Unlearning, objective_of, record_of


def gaps(stereotypes: Side, others: Side) -> Tensor:
    """Return |log p(stereotype) - log p(antistereotype)| of each pair, (pairs,), in nats."""
    return (stereotypes.now.nll - others.now.nll).abs()


def _equalise(stereotypes: Side, others: Side | None, _: UnlearningConfig) -> Tensor:
    if others is None:
        raise ValueError("equalising needs both sides")
    return gaps(stereotypes, others).mean()


DEBIAS: Mapping[str, Objective] = MappingProxyType(
    {
        "equalise": Objective(
            _equalise,
            "equal likelihoods of StereoSet's pairs, arXiv 2004.09456",
            MappingProxyType({"retain": "kl", "forget_weight": 0.1, "lr": 5e-4}),
            refuses=True,
        ),
        "leace": Objective(None, "LEACE, arXiv 2306.03819", retains=False),
    }
)
"""Ways to debias, by name."""


def debias(
    lm: LM,
    method: str,
    config: UnlearningConfig,
    pairs: Sequence[SentencePair],
    keep: Sequence[Passage],
    folder: Path,
    progress: OnProgress,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Debias a model; return it, and a record of what was asked for and done, ready for JSON.

    Args:
        lm: the model; it is changed.
        method: one of `DEBIAS`.
        config, pairs, keep: see `debiasing` and `erase_values`, which keeps nothing.
        folder: where the state of training is kept meanwhile.
        progress: called with what is done.

    Raises:
        ArtifactError: the state in the folder is that of another run.
        ConfigError: the way is unknown, or the model has no such layer.
        PromptTooLongError: a sentence does not fit the model's context.
        UsageError: there is no pair, or something is to be kept in a way that keeps nothing.
    """
    begun = time.monotonic()
    objective = objective_of(method, DEBIAS)
    check_keeps(method, objective, keep)
    if objective.retains:
        run = debiasing(lm, config, pairs, keep)
        model = run.run(folder, progress)
        return model, run.record(time.monotonic() - begun)
    base = fingerprint(lm.model)
    layers = erase_values(lm, config, pairs)
    settings = {**config.to_dict(), "layer": layers[-1], "blocks": len(layers)}
    one, other = sides(pairs)
    passages = {"forget": one, "instead": other}
    seconds = time.monotonic() - begun
    return lm.model, record_of(method, objective, settings, base, passages, 0, seconds)


def debiasing(
    lm: LM,
    config: UnlearningConfig,
    pairs: Sequence[SentencePair],
    keep: Sequence[Passage] = (),
) -> Unlearning:
    """Return a run of `equalise`.

    Args:
        lm: the model; the run changes it.
        config: the settings.
        pairs: at least one.
        keep: what the model shall go on saying; none: texts that it writes itself.

    Raises:
        ConfigError: the model has no such layer.
        PromptTooLongError: a sentence does not fit the model's context.
        UsageError: there is no pair.
    """
    check_some(pairs)
    one, other = sides(pairs)
    return Unlearning(lm, "equalise", config, one, keep or self_written(lm), other, DEBIAS)


def sides(pairs: Sequence[SentencePair]) -> tuple[list[Passage], list[Passage]]:
    """Return pairs' stereotypes and their opposites as sentences."""
    return (
        sentences([each.stereotype for each in pairs]),
        sentences([each.antistereotype for each in pairs]),
    )


@torch.no_grad()
def divergent_states(
    lm: LM, module: nn.Module, pairs: Sequence[SentencePair]
) -> tuple[Tensor, Tensor]:
    """Return a module's outputs from where the sentences of a pair differ, and whose they are.

    Args:
        lm: the model.
        module: of the model; its outputs are (batch, time, width).
        pairs: at least one.

    Returns:
        States (n, width), and (n,): 1 in stereotypes, 0 in their opposites.
    """
    states, concept = [], []
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        texts = [text for each in part for text in (each.stereotype, each.antistereotype)]
        rows = [row for each in sentences(texts) for row in each.rows(lm)]
        batch = lm.batch(rows, side="right")
        with capture_output(module) as captured:
            lm.run_body(batch)
        found = captured[0].reshape(*batch.input_ids.shape, -1)
        for number, row in enumerate(rows):
            other = rows[number ^ 1].ids
            same = sum(1 for _ in _common(row.ids, other))
            own = found[number, min(same, len(row.ids) - 1) : len(row.ids)]
            states.append(own)
            concept.append(own.new_full((len(own),), float(number % 2 == 0)))
    return torch.cat(states).double(), torch.cat(concept).double()


def _common(one: Sequence[int], other: Sequence[int]) -> Iterator[int]:
    """Yield the tokens with which both begin."""
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            return
        yield mine


@contextmanager
def erased(lm: LM, eraser: Eraser, layer: int) -> Iterator[None]:
    """Within a `with` block, have a block's output, the residual stream, go through an eraser.

    No checkpoint of the same form does that: what lies below reads the stream before, what lies
    above through a norm.
    """
    with replace_output(lm.architecture.block(lm.model, layer), eraser):
        yield


def erase_values(lm: LM, config: UnlearningConfig, pairs: Sequence[SentencePair]) -> list[int]:
    """Fold an eraser into the value matrices of some blocks, from below; return the blocks.

    Each is fitted to the model with those below it. What attention and other blocks add to the
    stream stays as it is.

    Args:
        lm: the model; it is changed.
        config: `layer`, the last of `blocks` blocks; by default the middle one.
        pairs: at least one.

    Raises:
        ConfigError: the model has no such layer.
        UsageError: there is no pair.
    """
    check_some(pairs)
    last = lm.architecture.n_layers // 2 if config.layer is None else config.layer
    if last >= lm.architecture.n_layers:
        raise ConfigError(f"layer is {last}, and the model has {lm.architecture.n_layers} blocks.")
    layers = list(range(max(0, last - config.blocks + 1), last + 1))
    for layer in layers:
        module = lm.architecture.value_module(lm.model, layer)
        Eraser.fit(*divergent_states(lm, module, pairs)).fold(module)
    return layers
