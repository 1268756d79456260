"""`Heads`: which modules make a block's queries, keys and values, and which reads what heads say.

They are found by their names and shapes, whatever the family.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm.lm import LM

_ONE = {kind: re.compile(f"{kind[0]}_?(proj|lin)?|{kind}", re.IGNORECASE) for kind in
        ("query", "key", "value")}  # fmt: skip
_ALL = re.compile("qkv|query_key_value|c_attn", re.IGNORECASE)
_TOGETHER = re.compile("query_key_value", re.IGNORECASE)
"""Queries, keys and values of one head, or group of heads, stand together in its output."""


@dataclass(frozen=True)
class Heads:
    """The heads of one block's attention.

    Attributes:
        inputs: paths of the modules that make queries, keys and values; one, if it makes all.
        output: path of the module that reads what the heads say, (..., heads * width).
        heads: of queries.
        key_heads: of keys and values; each serves as many query heads in a row.
        width: of a head.
    """

    inputs: tuple[str, ...]
    output: str
    heads: int
    key_heads: int
    width: int

    @property
    def kept(self) -> int:
        """Numbers in the keys and values of one token."""
        return 2 * self.key_heads * self.width

    def split(self, made: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (..., heads, width), keys and values (..., key_heads, width).

        Args:
            made: what the `inputs` made, (..., width of each).
        """
        heads, key_heads = self.heads, self.key_heads
        if len(made) == 1 and _TOGETHER.search(self.inputs[0]):
            groups = torch.unflatten(made[0], -1, (key_heads, -1, self.width))
            queries = groups[..., :-2, :].flatten(-3, -2)
            return queries, groups[..., -2, :], groups[..., -1, :]
        parts = made
        if len(made) == 1:
            sizes = [each * self.width for each in (heads, key_heads, key_heads)]
            parts = torch.split(made[0], sizes, dim=-1)
        queries, keys, values = (torch.unflatten(each, -1, (-1, self.width)) for each in parts)
        return queries, keys, values


def heads_of(lm: LM, layer: int) -> Heads:
    """Return the heads of a block's attention.

    Raises:
        ConfigError: there is no such block, or its projections are not found.
    """
    names = {
        path.rpartition(".")[2]: path for path in lm.architecture.attention_paths(lm.model, layer)
    }
    found = [
        [path for name, path in names.items() if pattern.fullmatch(name)]
        for pattern in _ONE.values()
    ]
    inputs = [each[0] for each in found if len(each) == 1]
    if len(inputs) != len(_ONE):
        inputs = [path for name, path in names.items() if _ALL.search(name)]
    outputs = [path for path in names.values() if path not in inputs]
    if len(inputs) not in (1, len(_ONE)) or len(outputs) != 1:
        raise ConfigError(
            f"block {layer}: looked for the projections of queries, keys, values and output; "
            f"found {', '.join(names)}."
        )
    heads = int(lm.model.config.get_text_config().num_attention_heads)
    width = _sizes(lm, outputs[0])[0] // heads
    made = sum(_sizes(lm, path)[1] for path in inputs) // width
    return Heads(tuple(inputs), outputs[0], heads, (made - heads) // 2, width)


def _sizes(lm: LM, path: str) -> tuple[int, int]:
    """Return the (in, out) sizes of a linear module."""
    module = lm.model.get_submodule(path)
    if hasattr(module, "nf"):  # stored transposed
        return int(module.weight.shape[0]), int(module.nf)
    return int(module.in_features), int(module.out_features)
