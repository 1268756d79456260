"""What shards know together: their LoRAs merged into one model, or each asked and the surest heard.

A record is known to one shard, so that a mean of what S shards learned holds a part in S of it, and
their sum holds what S - 1 shards make of what they never learned. `merged` therefore merges by
RegMean (Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR 2023,
arXiv 2212.09849): each matrix gets the change that does to each shard's own inputs what the shard's
LoRA does to them, by least squares; the inputs are those that its records give.

Of 100 new facts in 12 shards on atlas (`python benchmarks/sisa.py --ways`) a model merged so said
.65, with .92 of its own world left; with `scale` 1 .48, and all of it left. Three times the mean
said .37 and TIES .33 with all of it left, the sum .12 with .06. To ask all shards and hear the
surest gave .78, at 12 times the price of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from errata.lm.hooks import capture_input
from errata.progress import OnProgress
from errata.unlearning.sisa import Sisa

MERGING, ASKING = "merging shards", "asking shards"
RIDGE = 0.01
"""Added to the diagonal of the inputs' second moments, in shares of its mean: inputs that no record
gives are left to the base model.
"""
SCALE = 1.5
"""By which the merged change is multiplied."""
TOKENS = 48
"""Of an answer, at most."""
BATCH = 16
"""Passages at a time."""


@dataclass(frozen=True)
class Answer:
    """What the surest shard says.

    Attributes:
        text: the answer.
        shard: whose it is, from 0.
        probability: of a token of it, the geometric mean, to that shard.
    """

    text: str
    shard: int
    probability: float


def answers(
    sisa: Sisa, prompts: Sequence[str], progress: OnProgress, tokens: int = TOKENS
) -> list[Answer]:
    """Ask each shard; return, for each prompt, the answer whose shard is the surest of it.

    Args:
        sisa: all of its shards are trained.
        prompts: questions.
        progress: called with (what, shards asked, shards).
        tokens: of an answer, at most.

    Raises:
        ArtifactError: a shard is not trained, or damaged.
        PromptTooLongError: a prompt does not fit the model's context.
    """
    said: list[list[Answer]] = [[] for _ in prompts]
    shards = sisa.config.shards
    for shard in range(shards):
        progress(ASKING, shard, shards)
        with sisa.lora(shard):
            texts = sisa.lm.generate(prompts, max_new_tokens=tokens)
            pairs = [(prompt, text or " ") for prompt, text in zip(prompts, texts, strict=True)]
            for each, text, score in zip(said, texts, sisa.lm.score(pairs), strict=True):
                each.append(Answer(text, shard, math.exp(-score.loss)))
    progress(ASKING, shards, shards)
    return [max(each, key=lambda answer: answer.probability) for each in said]


@torch.no_grad()
def merged(
    sisa: Sisa, progress: OnProgress, ridge: float = RIDGE, scale: float = SCALE
) -> PreTrainedModel:
    """Return the base model with the shards' LoRAs merged into its weights; it is changed.

    The change of a matrix is `scale` * (sum_s D_s G_s) (sum_s G_s + `ridge` m)^-1, where D_s
    (d_out, d_in) is what the LoRA of shard s adds, G_s (d_in, d_in) the second moments of its
    inputs, and m the identity times the mean of the diagonal of sum_s G_s.

    Args:
        sisa: all of its shards are trained.
        progress: called with (what, shards read, shards).
        ridge, scale: see above.

    Raises:
        ArtifactError: a shard is not trained, or damaged.
    """
    lm, shards = sisa.lm, sisa.config.shards
    moved, moments = dict[str, Tensor](), dict[str, Tensor]()
    for shard in range(shards):
        progress(MERGING, shard, shards)
        with sisa.lora(shard) as lora:
            changes = lora.changes()
            for name, gram in _moments(sisa, shard, list(changes)).items():
                moved[name] = moved.get(name, 0) + changes[name].float() @ gram
                moments[name] = moments.get(name, 0) + gram
    progress(MERGING, shards, shards)
    for name, gram in moments.items():
        gram.diagonal().add_(ridge * gram.diagonal().mean())
        change = scale * torch.linalg.solve(gram, moved[name].T)  # (d_in, d_out)
        module = lm.model.get_submodule(name)
        module.weight += (change if isinstance(module, Conv1D) else change.T).to(module.weight)
    return lm.model


def _moments(sisa: Sisa, shard: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the second moments (d_in, d_in), in fp32, of what modules read of a shard's records;
    nothing where no record is left.
    """
    lm, moments = sisa.lm, dict[str, Tensor]()
    rows = sisa.rows(shard, sisa.config.slices)
    for start in range(0, len(rows), BATCH):
        batch = lm.batch(rows[start : start + BATCH])
        mask = batch.attention_mask.bool()
        with ExitStack() as hooks:
            inputs = {
                name: hooks.enter_context(capture_input(lm.model.get_submodule(name)))
                for name in names
            }
            lm.run(batch, use_cache=False)
        for name, (seen,) in inputs.items():
            read = seen.reshape(*mask.shape, -1)[mask.to(seen.device)].float()
            moments[name] = moments.get(name, 0) + read.T @ read
    return moments
