"""`self_attentions`: the weights of blocks' own attention, as four matrices, whatever the family.

For what is to read as the model itself does, and begins with a copy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errata.lm.encoding import Row
from errata.lm.heads import Heads, heads_of
from errata.lm.hooks import capture_input
from errata.lm.lm import LM

_TOKENS = 128
"""Tokens, drawn at random, on which it is seen what a block's norm does to each dimension."""


@dataclass(frozen=True)
class SelfAttention:
    """What one block's attention reads hidden states by, and adds to them, in fp32.

    Biases, positions, and norms of queries and keys are left out.

    Attributes:
        heads: of queries.
        query: (heads * width, hidden), of hidden states with a root mean square of 1; what the
            block's norm does to each dimension is in it.
        key: the same of keys, repeated for all heads that a key head serves.
        value: the same of values.
        output: (hidden, heads * width).
    """

    heads: int
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


@torch.no_grad()
def self_attentions(lm: LM, layers: Sequence[int]) -> list[SelfAttention]:
    """Return the attention of blocks of a model without patches.

    Raises:
        ConfigError: there is no such block, or its projections are not found.
    """
    found = [heads_of(lm, layer) for layer in layers]
    draw = torch.Generator().manual_seed(0)
    count = int(lm.model.get_input_embeddings().weight.shape[0])
    ids = tuple(torch.randint(count, (_TOKENS,), generator=draw).tolist())
    with contextlib.ExitStack() as hooks:
        read = [
            (
                hooks.enter_context(capture_input(lm.architecture.block(lm.model, layer))),
                hooks.enter_context(capture_input(lm.model.get_submodule(heads.inputs[0]))),
            )
            for layer, heads in zip(layers, found, strict=True)
        ]
        lm.run(lm.batch([Row(ids, len(ids))]), keep=1, use_cache=False)
    made = []
    for heads, (before, after) in zip(found, read, strict=True):
        states, normed = before[0].flatten(0, -2).float(), after[0].flatten(0, -2)
        states = F.rms_norm(states, states.shape[-1:])
        scale = (states * normed.float()).sum(0) / states.square().sum(0)  # least squares
        made.append(_matrices(lm, heads, scale.to(normed)))
    return made


def _matrices(lm: LM, heads: Heads, scale: Tensor) -> SelfAttention:
    """Return the matrices, read off the modules, which may be fused, transposed or quantized."""
    inputs, output = heads.inputs, heads.heads * heads.width

    def of(path: str, rows: Tensor) -> Tensor:
        module: nn.Module = lm.model.get_submodule(path)
        both: Tensor = module(torch.cat([rows, rows.new_zeros(1, rows.shape[1])]))
        return (both[:-1] - both[-1:]).float()

    queries, keys, values = heads.split([of(path, scale.diag()) for path in inputs])
    serves = heads.heads // heads.key_heads
    parts = (queries, *(each.repeat_interleave(serves, dim=1) for each in (keys, values)))
    query, key, value = (each.flatten(1).mT.contiguous() for each in parts)
    said = of(heads.output, torch.eye(output, dtype=scale.dtype, device=scale.device))
    return SelfAttention(heads.heads, query, key, value, said.mT.contiguous())
