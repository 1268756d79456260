"""`Prefix`: keys and values of a text; `Opening`: those of what every prompt begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache

from errata.errors import ConfigError
from errata.lm import LM


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a text.

    Attributes:
        keys: layers, each (heads, tokens, head width) in fp32.
        values: as keys.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        """Tokens."""
        return int(self.keys[0].shape[1])


@dataclass(frozen=True)
class Opening:
    """What every prompt begins with.

    Attributes:
        ids: its tokens; there may be none.
        prefix: its keys and values; None where it has no tokens.
        begins: the token that the tokenizer begins texts with, if it is the first of them.
    """

    ids: tuple[int, ...] = ()
    prefix: Prefix | None = None
    begins: int | None = None

    def in_front_of(self, ids: Sequence[int]) -> int:
        """Return how many of a prompt's first tokens are of the opening.

        They are all of it or, where a conversation begins otherwise, the first token of texts.
        """
        if tuple(ids[: len(self.ids)]) == self.ids:
            return len(self.ids)
        return int(bool(ids) and ids[0] == self.begins)


def read_opening(lm: LM) -> Opening:
    """Return the opening of a model's prompts. The model must carry no patch.

    Raises:
        ConfigError: see `read_prefix`.
    """
    ids, begins = _opening_ids(lm), lm.tokenizer.bos_token_id
    first = begins if ids and ids[0] == begins else None
    return Opening(ids, _read(lm, ids) if ids else None, first)


def read_prefix(lm: LM, text: str) -> Prefix:
    """Return the keys and values of a text behind the opening. The model must carry no patch.

    Raises:
        ConfigError: the model keeps other things than keys and values of each token.
    """
    opening, front = _opening_ids(lm), lm.template.front if lm.template else ""
    ids = tuple(lm.encode_text(front + text))
    if ids[: len(opening)] != opening or len(ids) == len(opening):
        ids = (*opening, *lm.encode_piece(text))
    return _read(lm, ids, len(opening))


def _opening_ids(lm: LM) -> tuple[int, ...]:
    """Return the tokens that a prompt begins with, whatever is asked."""
    if lm.template is None:
        first = lm.encode_text("x")[0]
        return (first,) if first == lm.tokenizer.bos_token_id else ()
    one, other = (lm.encode_text(lm.template.front + text) for text in ("x", "1"))
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
    return tuple(one[:same])


@torch.no_grad()
def _read(lm: LM, ids: Sequence[int], start: int = 0) -> Prefix:
    """Return the keys and values of tokens, from the one at `start` on."""
    cache = DynamicCache()
    tokens = torch.tensor([ids], device=lm.device)
    lm.model(input_ids=tokens, use_cache=True, **{lm.cache_name: cache})
    found = [(layer.keys, layer.values) for layer in cache.layers if layer.is_initialized]
    shapes = {(keys.dim(), keys.shape[-2]) for pair in found for keys in pair}
    if shapes != {(4, len(ids))} or len(found) != len(cache.layers):
        raise ConfigError(
            f"{type(lm.model).__name__} does not keep keys and values of each token at each layer, "
            "so none can be put in front; rag puts the text there."
        )
    pairs = ((k[0, :, start:].float().cpu(), v[0, :, start:].float().cpu()) for k, v in found)
    keys, values = zip(*pairs, strict=True)
    return Prefix(keys, values)
