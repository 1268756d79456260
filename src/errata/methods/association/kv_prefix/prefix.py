"""`Prefix`: keys and values of a text; `Opening`: those of what a prompt begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    """What a prompt begins with, in front of what the user says first.

    Attributes:
        ids: its tokens; there may be none.
        text: in a chat template, the text.
        prefix: its keys and values, once they were read; None where it has no tokens.
    """

    ids: tuple[int, ...] = ()
    text: str = field(default="", compare=False)
    prefix: Prefix | None = field(default=None, compare=False)


def opening_of(lm: LM, ids: Sequence[int]) -> Opening:
    """Return the opening of a prompt, given by its tokens; it is not read.

    It is the beginning-of-text token where the prompt begins with one; in a chat template, all that
    stands in front of the user's first words, a system message, too.
    """
    if lm.template is not None:
        whole = str(lm.tokenizer.decode(list(ids), skip_special_tokens=False))
        spans = lm.template.marks.spans(whole)
        if text := whole[: spans[0][0]] if spans else "":
            both = zip(ids, lm.encode_text(text), strict=False)
            return Opening(tuple(one for one, _ in takewhile(_alike, both)), text)
    begins = lm.tokenizer.bos_token_id
    return Opening((begins,) if begins is not None and ids[0] == begins else ())


def read_opening(lm: LM, opening: Opening) -> Opening:
    """Return an opening with its keys and values. The model must carry no patch.

    Raises:
        ConfigError: see `read_prefix`.
    """
    return replace(opening, prefix=_read(lm, opening.ids)) if opening.ids else opening


def read_prefix(lm: LM, text: str, opening: Opening) -> Prefix:
    """Return the keys and values of a text behind an opening. The model must carry no patch.

    Raises:
        ConfigError: the model keeps other things than keys and values of each token.
    """
    ids = lm.encode_text(opening.text + text)
    start = len(opening.ids)
    if tuple(ids[:start]) != opening.ids or len(ids) == start:
        ids = [*opening.ids, *lm.encode_piece(text)]
    return _read(lm, ids, start)


def _alike(pair: tuple[int, int]) -> bool:
    return pair[0] == pair[1]


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
