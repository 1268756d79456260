"""`VirtualTokens`: learned tokens in front of every text. The model is called as ever, and answers
for the given tokens.

They stand directly before a row's first token, behind what it is padded with on the left: so
distances that a family counts by index (ALiBi, sliding windows) are those of the text asked alone.
The given tokens keep their positions. Where positions are computed (rotary), the virtual tokens
have -n .. -1, which to a rotary model is the same as 0 .. n - 1 and all else moved on by n; where
they are looked up in a table, all have the first, and no context is lost. Once in the key-value
cache, they are there for the whole answer, and only the mask has to tell of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from errata.errors import ConfigError, PromptTooLongError
from errata.lm import LM
from errata.lm.hooks import PerThread
from errata.patches.adapter import load_into
from errata.patches.base import Patch


@dataclass
class _Inserted:
    """What was inserted in the forward call that runs now.

    Attributes:
        kept: (batch, width), the columns of the given tokens.
        total: width with the virtual tokens.
        positions: logits asked for by `logits_to_keep`, where it was a tensor.
        cache: whose `update` is watched, if any is.
        lent: nobody asked for that cache, so it is not given back.
    """

    kept: Tensor
    total: int
    positions: Tensor | None = None
    cache: Any = None
    lent: bool = False


class VirtualTokens(Patch):
    """n tokens that no vocabulary has, in front of every text.

    Args:
        embeddings: (n, hidden), what goes into the model in their place: prompt tuning.
        memory: layer -> keys and values (n, heads, width of a head) that stand in that layer's
            key-value cache in the place of those it makes of them: prefix tuning. Layers without an
            entry make their own.
    """

    reads_prompts = True
    changes_cache = True

    def __init__(
        self, embeddings: Tensor, memory: Mapping[int, tuple[Tensor, Tensor]] | None = None
    ) -> None:
        self.embeddings = embeddings
        self.memory = dict(memory or {})
        self._handles: list[RemovableHandle] = []
        self._now: PerThread[_Inserted | None] = PerThread(None)
        self._kept = ""
        self._names: tuple[str, ...] = ()
        self._bind: Callable[..., inspect.BoundArguments]

    @property
    def count(self) -> int:
        """n."""
        return int(self.embeddings.shape[0])

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What may be taught, by the name it is saved under."""
        if not self.memory:
            return {"prompt_embeddings": self.embeddings}
        named = (("keys", 0), ("values", 1))
        return {
            f"{name}.{layer}": pair[i] for layer, pair in self.memory.items() for name, i in named
        }

    def state(self) -> dict[str, Tensor]:
        """The parameters by name, copied to the CPU."""
        return {
            name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the parameters that `state` gave.

        Raises:
            KeyError: one is missing.
            ValueError: one is of another shape.
        """
        load_into(self.parameters, tensors)

    @torch.no_grad()
    def remember(self, lm: LM) -> VirtualTokens:
        """The same tokens with the keys and values that the model makes of them: nothing it says
        changes.
        """
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        cache, n = DynamicCache(config=lm.model.config), self.count
        update = cache.update

        def look(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            own = (x[0, :, :n].transpose(0, 1).float().clone() for x in (keys, values))
            seen[layer] = (next(own), next(own))
            return update(keys, values, layer, *args, **kwargs)

        cache.update = look
        with self.on(lm):
            lm.model(input_ids=torch.tensor([[lm.pad_id]], device=lm.device), past_key_values=cache)
        return VirtualTokens(self.embeddings, seen)

    # installed

    def _attach(self, lm: LM) -> None:
        signature = inspect.signature(lm.model.forward)
        self._bind, self._names = signature.bind_partial, tuple(signature.parameters)
        self._model = lm.model
        self._first = -self.count if _computes_positions(lm.model) else 0
        self._limit = lm.context_length if room_for(lm, self.count) else 0
        self._kept = f"errata_virtual_{uuid4().hex}"
        self._handles = [
            lm.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            lm.model.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]

    def _detach(self, lm: LM) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        given = dict(self._bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))
        tokens = (
            given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
        )
        mask, cache = given.get("attention_mask"), given.get("past_key_values")
        self._now.set(None)
        if tokens is None:
            return None
        if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
            raise ConfigError("virtual tokens need an attention_mask of (batch, width), or none.")
        if getattr(cache, "is_compileable", False):
            raise ConfigError(
                "virtual tokens need a cache that grows; leave cache_implementation out."
            )
        past = cache.get_seq_length() if cache is not None else 0
        if past and not hasattr(cache, self._kept):
            raise ConfigError(
                "this cache was filled without the virtual tokens; give the whole text without past_key_values."
            )
        if self._limit and past + tokens.shape[1] + (0 if past else self.count) > self._limit:
            raise PromptTooLongError(
                f"{self.count} virtual tokens and the text do not fit into this model's context of {self._limit} tokens."
            )
        if past:
            self._go_on(given, tokens, past - self.count)
        else:
            self._insert(given, tokens)
        return (), given

    def _go_on(self, given: dict[str, Any], tokens: Tensor, seen: int) -> None:
        """The cache has the virtual tokens: the mask tells of them, positions do not count them."""
        width, mask, positions = (
            tokens.shape[1],
            given.get("attention_mask"),
            given.get("position_ids"),
        )
        fits = mask is None or mask.shape[1] == seen + width
        if mask is None and positions is not None and width > 1:
            fits = int(positions.flatten()[0]) == seen
        if not fits:
            raise ConfigError(
                "a cache that holds virtual tokens cannot be gone on with by generate; give the whole text."
            )
        if "position_ids" in self._names and positions is None:
            given["position_ids"] = _positions(mask, tokens, seen)[:, -width:]
        if mask is not None:
            source, slots, _ = self._places(mask)
            given["attention_mask"] = mask.gather(1, source).masked_fill(slots, 1)

    def _insert(self, given: dict[str, Any], tokens: Tensor) -> None:
        """Put them in front of each row's first token."""
        embed, size = self._model.get_input_embeddings(), tokens.shape[:2]
        mask = given.get("attention_mask")
        if mask is None:
            mask = torch.ones(size, dtype=torch.long, device=tokens.device)
        source, slots, kept = self._places(mask)
        embedded = embed(tokens) if tokens.dim() == 2 else tokens
        wide = embedded.gather(1, source[..., None].expand(-1, -1, embedded.shape[-1]))
        given["inputs_embeds"] = self._fill(wide, slots, self.embeddings)
        given["input_ids"] = None
        given["attention_mask"] = mask.gather(1, source).masked_fill(slots, 1)
        if "position_ids" in self._names:
            positions = given.get("position_ids")
            positions = _positions(mask, tokens, 0) if positions is None else positions.expand(size)
            wide = positions.gather(1, source)
            own = (
                torch.arange(self.count, device=wide.device) + self._first
                if self._first
                else wide.new_zeros(self.count)
            )
            given["position_ids"] = self._fill(wide, slots, own)
        if given.get("labels") is not None:
            labels = given["labels"].to(tokens.device).gather(1, source).masked_fill(slots, -100)
            first = kept.gather(
                1, _starts(mask)[:, None]
            )  # no given token says what the first one is
            given["labels"] = labels.scatter(1, first, -100)
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = given["token_type_ids"].gather(1, source)
        now = _Inserted(kept, source.shape[1])
        self._now.set(now)
        if isinstance(given.get("logits_to_keep"), Tensor):
            now.positions, given["logits_to_keep"] = given["logits_to_keep"], 0
        if self.memory:
            self._watch(now, given, slots)

    def _watch(self, now: _Inserted, given: dict[str, Any], slots: Tensor) -> None:
        """Let each layer remember the prefix where the virtual tokens stand."""
        cache = given.get("past_key_values")
        cache = DynamicCache(config=self._model.config) if cache is None else cache
        update = cache.update

        def remember(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            if layer in self.memory:
                keys, values = (
                    self._fill(made.transpose(1, 2), slots, own).transpose(1, 2)
                    for made, own in zip((keys, values), self.memory[layer], strict=True)
                )
            return update(keys, values, layer, *args, **kwargs)

        cache.update = remember
        wanted = given.get("use_cache")
        wanted = (
            getattr(self._model.config.get_text_config(), "use_cache", True)
            if wanted is None
            else wanted
        )
        now.cache, now.lent = cache, given.get("past_key_values") is None and not wanted
        given["past_key_values"] = cache

    def _fill(self, wide: Tensor, slots: Tensor, own: Tensor) -> Tensor:
        """A copy of wide (batch, total, ...) with own (n, ...) in the slots (batch, total) of each
        row.
        """
        filled = wide.clone()
        slots = slots.to(wide.device)
        filled[slots] = own.to(device=wide.device, dtype=wide.dtype).repeat(
            wide.shape[0], *[1] * (own.dim() - 1)
        )
        return filled

    def _end(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        now = self._now.get()
        self._now.set(None)
        if now is None:
            return None
        if now.cache is not None:
            del now.cache.update
        if output is None:  # the forward raised
            return None
        parts = output if isinstance(output, tuple) else [getattr(output, "past_key_values", None)]
        for cache in (now.cache, *parts):
            if hasattr(cache, "get_seq_length"):
                setattr(cache, self._kept, True)
        if isinstance(output, tuple):
            return _cut(
                tuple(part for part in output if not now.lent or part is not now.cache), now
            )
        said = {
            name: _cut(value, now)
            for name, value in output.items()
            if not now.lent or value is not now.cache
        }
        if now.positions is not None:
            said["logits"] = said["logits"][:, now.positions]
        return type(output)(**said)

    def _places(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For rows with this mask (batch, width): (source, slots, kept).

        source (batch, width + n): the column that each comes from; slots, alike: where the virtual
            tokens stand; kept
        (batch, width): where each given column goes.
        """
        n, width, start = self.count, mask.shape[1], _starts(mask)[:, None]
        columns = torch.arange(width + n, device=mask.device)[None]
        slots = (columns >= start) & (columns < start + n)
        source = torch.where(columns >= start + n, columns - n, columns).clamp(max=width - 1)
        given = columns[:, :width]
        return source, slots, torch.where(given >= start, given + n, given)


def room_for(lm: LM, count: int) -> int:
    """How much of the context so many virtual tokens take: nothing where positions are given and
    not counted.
    """
    return 0 if "position_ids" in inspect.signature(lm.model.forward).parameters else count


def _computes_positions(model: nn.Module) -> bool:
    """Whether positions are turned into angles as they come (rotary), and not looked up in a table
    that ends somewhere.
    """
    return any(name.endswith("inv_freq") for name, _ in model.named_buffers())


def _starts(mask: Tensor) -> Tensor:
    """(batch,): the column of each row's first token."""
    return mask.ne(0).int().argmax(-1)


def _positions(mask: Tensor | None, tokens: Tensor, seen: int) -> Tensor:
    """(batch, seen + width): each token's place in its own row, padding and virtual tokens left
    out.
    """
    if mask is None:
        mask = torch.ones(
            tokens.shape[0], seen + tokens.shape[1], dtype=torch.long, device=tokens.device
        )
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _cut(value: Any, now: _Inserted) -> Any:
    """Logits and hidden states of the given tokens alone; attention weights keep the virtual ones."""
    if isinstance(value, tuple):
        return tuple(_cut(part, now) for part in value)
    if (
        isinstance(value, Tensor)
        and value.dim() == 3
        and value.shape[:2] == (now.kept.shape[0], now.total)
    ):
        kept = now.kept.to(value.device)
        return value.gather(1, kept[..., None].expand(-1, -1, value.shape[-1]))
    return value
