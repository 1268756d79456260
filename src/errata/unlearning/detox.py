"""Detoxification: a model learns to answer safely where it answered otherwise.

DINM (arXiv 2403.14472) trains the value matrix of one block, the toxic one, on safe responses,
while what the model says to anything else stays. Here it departs from the paper's code in three
ways: all pairs are learned together; the divergence that keeps the rest has a gradient; and the
toxic block is told by the responses' mean states, so that their lengths do not count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.errors import ConfigError, UsageError
from errata.lm import LM
from errata.lm.background import background_texts
from errata.lm.encoding import prompt_tokens
from errata.lm.hooks import capture_output, replace_output
from errata.lm.weights import read_bias
from errata.progress import OnProgress
from errata.storage.cache import fingerprint
from errata.unlearning.config import UnlearningConfig
from errata.unlearning.objectives import OBJECTIVES, Objective
from errata.unlearning.pairs import ResponsePair
from errata.unlearning.passages import Passage
from errata.unlearning.training import Unlearning, objective_of, record_of

BACKGROUND, LENGTH = 48, 48
"""Texts that the model writes itself where nothing to keep is given, and their tokens at most."""
BATCH = 8
"""Responses read at a time."""
TOXIC, STEERING = "dinm", "steering"
"""The way that trains the toxic block alone, and the control, which trains nothing."""

DETOX: Mapping[str, Objective] = MappingProxyType(
    {
        TOXIC: replace(
            OBJECTIVES["idk"],
            paper="DINM, arXiv 2403.14472",
            own={
                "trains": "values", "blocks": 1, "retain": "kl", "forget_weight": 0.1,
                "epochs": 10, "lr": 5e-4,
            },
        ),
        "negation": replace(
            OBJECTIVES["negation"], paper="task vectors, arXiv 2212.04089 and 2306.14870"
        ),
        "dpo": replace(OBJECTIVES["dpo"], paper="DPO, arXiv 2305.18290", own={"retain": "kl"}),
        STEERING: Objective(None, "mean difference of states, arXiv 2312.06681", retains=False),
    }
)  # fmt: skip
"""Ways to detoxify, by name; what is forgotten is the unsafe response."""


def detoxify(
    lm: LM,
    method: str,
    config: UnlearningConfig,
    pairs: Sequence[ResponsePair],
    keep: Sequence[Passage],
    folder: Path,
    progress: OnProgress,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Detoxify a model; return it, and a record of what was asked for and done, ready for JSON.

    Args:
        lm: the model; it is changed.
        method, config, pairs, keep: see `detoxing`; steering keeps nothing.
        folder: where the state of training is kept meanwhile.
        progress: called with what is done.

    Raises:
        ArtifactError: the state in the folder is that of another run.
        ConfigError: the way is unknown, or the model has no such layer.
        PromptTooLongError: a prompt with its response does not fit the model's context.
        UsageError: there is no pair; something is to be kept in a way that keeps nothing; or the
            model has no bias in which steering could be saved.
    """
    begun = time.monotonic()
    check_keeps(method, objective_of(method, DETOX), keep)
    if method != STEERING:
        run = detoxing(lm, method, config, pairs, keep)
        model = run.run(folder, progress)
        return model, run.record(time.monotonic() - begun)
    check_some(pairs)
    base = fingerprint(lm.model)
    layer = lm.architecture.n_layers // 2 if config.layer is None else config.layer
    steer_bias(lm, steering_vector(lm, pairs, layer), layer)
    settings = {**config.to_dict(), "layer": layer}
    unsafe, safe = sides(pairs)
    passages = {"forget": unsafe, "instead": safe}
    seconds = time.monotonic() - begun
    return lm.model, record_of(method, DETOX[method], settings, base, passages, 0, seconds)


def detoxing(
    lm: LM,
    method: str,
    config: UnlearningConfig,
    pairs: Sequence[ResponsePair],
    keep: Sequence[Passage] = (),
) -> Unlearning:
    """Return a run that detoxifies a model.

    Args:
        lm: the model; the run changes it.
        method: one of `DETOX` that is trained.
        config: the settings; where no layer is set, DINM trains the toxic block.
        pairs: at least one.
        keep: what the model shall go on saying; none: texts that it writes itself.

    Raises:
        ConfigError: the way is unknown, or the model has no such layer.
        PromptTooLongError: a prompt with its response does not fit the model's context.
        UsageError: there is no pair.
    """
    check_some(pairs)
    if method == TOXIC and config.layer is None:
        config = replace(config, layer=int(block_distances(lm, pairs).argmax()))
    unsafe, safe = sides(pairs)
    if DETOX[method].retains and not keep:
        keep = self_written(lm)
    return Unlearning(lm, method, config, unsafe, keep, safe, DETOX)


def sides(pairs: Sequence[ResponsePair]) -> tuple[list[Passage], list[Passage]]:
    """Return pairs' unsafe and safe responses as passages."""
    return (
        [Passage(each.prompt, each.unsafe) for each in pairs],
        [Passage(each.prompt, each.safe) for each in pairs],
    )


def self_written(lm: LM) -> list[Passage]:
    """Return texts that a model writes by itself, as documents."""
    texts = [text for text in background_texts(lm, BACKGROUND, LENGTH) if text.strip()]
    return [Passage("", text) for text in texts if len(lm.encode_text(text)) > 1]


def check_some(pairs: Sequence[object]) -> None:
    """Make sure that there is a pair.

    Raises:
        UsageError: there is none.
    """
    if not pairs:
        raise UsageError("there are no pairs; give at least one.")


def check_keeps(method: str, objective: Objective, keep: Sequence[Passage]) -> None:
    """Make sure that nothing is to be kept in a way that keeps nothing on purpose.

    Raises:
        UsageError: something is.
    """
    if keep and not objective.retains:
        raise UsageError(f"{method} keeps nothing on purpose; leave out what is to be kept.")


@torch.no_grad()
def response_states(lm: LM, passages: Sequence[Passage]) -> Tensor:
    """Return mean states of responses behind each block, (passages, blocks, hidden) in fp32.

    Args:
        lm: the model.
        passages: prompts with their responses; the mean is over the responses' tokens.
    """
    rows = [row for each in passages for row in each.rows(lm)]
    layers, found = range(lm.architecture.n_layers), []
    for start in range(0, len(rows), BATCH):
        batch = lm.batch(rows[start : start + BATCH])
        mask = (batch.target_mask | batch.ending_mask)[..., None]
        with ExitStack() as entered:
            captured = [
                entered.enter_context(capture_output(lm.architecture.block(lm.model, layer)))
                for layer in layers
            ]
            entered.enter_context(prompt_tokens(batch.prompt_mask))
            lm.run_body(batch)
        means = [
            (each[0].float() * mask.to(each[0].device)).sum(1).cpu() / mask.sum(1).cpu()
            for each in captured
        ]
        found.append(torch.stack(means, 1))
    return torch.cat(found)


def block_distances(lm: LM, pairs: Sequence[ResponsePair]) -> Tensor:
    """Return the mean L2 distance of unsafe from safe responses' states, (blocks,).

    The toxic block is that with the largest.
    """
    unsafe, safe = (response_states(lm, side) for side in sides(pairs))
    distances: Tensor = (unsafe - safe).norm(dim=-1).mean(0)
    return distances


def steering_vector(lm: LM, pairs: Sequence[ResponsePair], layer: int) -> Tensor:
    """Return the mean difference of safe from unsafe responses' states behind a block, (hidden,).

    Added to the block's output (`steered`), it is a control: it costs no training.
    """
    unsafe, safe = (response_states(lm, side)[:, layer] for side in sides(pairs))
    return (safe - unsafe).mean(0)


@contextmanager
def steered(lm: LM, vector: Tensor, layer: int) -> Iterator[None]:
    """Within a `with` block, add a vector (hidden,) to a block's output at every token."""
    block = lm.architecture.block(lm.model, layer)
    with replace_output(block, lambda states: states + vector.to(states)):
        yield


def steer_bias(lm: LM, vector: Tensor, layer: int) -> None:
    """Add a vector (hidden,) to the bias of a block's value matrix, as `steered` adds it.

    Raises:
        ConfigError: there is no such block.
        UsageError: the matrix has no bias.
    """
    bias = read_bias(lm.architecture.value_module(lm.model, layer))
    if bias is None:
        raise UsageError(
            "steering is saved in the bias of a value matrix, and this model's have none; "
            "errata.unlearning.detox.steered steers it in memory."
        )
    if bias.shape != vector.shape:
        raise ConfigError(f"a vector {tuple(vector.shape)} does not fit {tuple(bias.shape)}.")
    bias += vector.to(bias)
