"""`VirtualTokens`: learned tokens in front of every text, inside the model's own forward.

The caller's arguments and outputs are for the given tokens, as without the patch. The virtual
tokens are placed directly before a row's first token, behind its padding on the left, so distances
that a family counts by index (ALiBi, sliding windows) are those of the text alone. The given tokens
keep their positions. Where positions are computed (rotary), the virtual tokens have -n .. -1, which
to a rotary model is the same as 0 .. n - 1 and all else shifted by n; where they are looked up in a
table, all have position 0, and no context length is lost. Once in the key-value cache, they are
there for the whole answer, and only the attention mask has to cover them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from errata.errors import ConfigError, PromptTooLongError
from errata.lm import LM
from errata.lm.cache import cache_in
from errata.lm.hooks import PerThread
from errata.patches.base import Arguments, ForwardPatch, TrainablePatch
from errata.patches.forward_state import caches_in, column_mask
from errata.patches.layout import Layout


@dataclass
class _Insertion:
    """The virtual tokens inserted in a forward call.

    Attributes:
        layout: where they are.
        logit_positions: `logits_to_keep`, where it was a tensor.
        cache: the key-value cache whose `update` is wrapped, if any.
        is_temporary: the caller did not ask for that cache, so it is not returned.
        prompt: (batch, width + n) bool, the prompt, for a patch that chooses by it.
    """

    layout: Layout
    logit_positions: Tensor | None = None
    cache: Any = None
    is_temporary: bool = False
    prompt: Tensor | None = None


class VirtualTokens(ForwardPatch, TrainablePatch):
    """Put n tokens of no vocabulary in front of every text.

    Args:
        embeddings: (n, hidden), what the model reads in their place: prompt tuning.
        memory: layer -> (keys, values), each (n, heads, head width), that replace those which the
            layer computes for the virtual tokens: prefix tuning. Layers without an entry keep
            theirs.
    """

    reads_prompts = True
    changes_cache = True

    def __init__(
        self, embeddings: Tensor, memory: Mapping[int, tuple[Tensor, Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.memory = dict(memory or {})
        self._insertions: PerThread[_Insertion | None] = PerThread(None)
        self._cache_mark = ""  # the attribute that marks caches with the virtual tokens

    @property
    def count(self) -> int:
        """The number n of virtual tokens."""
        return int(self.embeddings.shape[0])

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The memory if there is one, else the embeddings, by the names they are saved under."""
        if not self.memory:
            return {"prompt_embeddings": self.embeddings}
        return {
            f"{name}.{layer}": tensor
            for layer, pair in self.memory.items()
            for name, tensor in zip(("keys", "values"), pair, strict=True)
        }

    @torch.no_grad()
    def with_memory(self, lm: LM) -> VirtualTokens:
        """Return the same tokens with the keys and values that the model computes for them.

        They become the memory; no output changes.
        """
        memory: dict[int, tuple[Tensor, Tensor]] = {}
        cache, n = DynamicCache(config=lm.model.config), self.count
        update = cache.update

        def record(keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
            own = (x[0, :, :n].transpose(0, 1).float().clone() for x in (keys, values))
            memory[layer] = (next(own), next(own))
            return update(keys, values, layer, *args, **kwargs)

        cache.update = record
        with self.on(lm):
            token = torch.tensor([[lm.pad_id]], device=lm.device)
            lm.model(input_ids=token, **{lm.cache_name: cache})
        return VirtualTokens(self.embeddings, memory)

    # installed

    def _attach(self, lm: LM) -> None:
        self._model = lm.model
        self._computes_positions = _computes_positions(lm.model)
        self._limit = lm.context_length if room_for(lm, self.count) else 0
        self._cache_mark = f"errata_virtual_{uuid4().hex}"
        super()._attach(lm)

    def _before_forward(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Arguments
    ) -> tuple[tuple[()], Arguments] | None:
        arguments = self._arguments(args, kwargs)
        tokens = arguments.get("inputs_embeds")
        tokens = arguments.get("input_ids") if tokens is None else tokens
        cache = cache_in(arguments)
        self._insertions.set(None)
        if tokens is None:
            return None
        if arguments.get("attention_mask") is not None and column_mask(arguments) is None:
            raise ConfigError("virtual tokens need an attention_mask of (batch, width), or none.")
        if getattr(cache, "is_compileable", False):
            raise ConfigError(
                "virtual tokens need a cache that grows; leave cache_implementation out."
            )
        past = cache.get_seq_length() if cache is not None else 0
        if past and not hasattr(cache, self._cache_mark):
            raise ConfigError(
                "this cache was filled without the virtual tokens; give the whole text without a "
                "cache."
            )
        if self._limit and past + tokens.shape[1] + (0 if past else self.count) > self._limit:
            raise PromptTooLongError(
                f"{self.count} virtual tokens and the text do not fit into this model's context of "
                f"{self._limit} tokens."
            )
        if past:
            self._continue(arguments, tokens, past - self.count)
        else:
            self._insert(arguments, tokens)
        return (), arguments

    def _continue(self, arguments: Arguments, tokens: Tensor, past: int) -> None:
        """Cover the virtual tokens in the cache by the mask, and do not count them as positions.

        `past` is the number of given tokens in the cache.
        """
        mask, positions = arguments.get("attention_mask"), arguments.get("position_ids")
        width = tokens.shape[1]
        fits = mask is None or mask.shape[1] == past + width
        if mask is None and positions is not None and width > 1:
            fits = int(positions.flatten()[0]) == past
        if not fits:
            raise ConfigError(
                "a cache that holds virtual tokens cannot be gone on with by generate; give the "
                "whole text."
            )
        if "position_ids" in self._argument_names and positions is None:
            arguments["position_ids"] = _positions(mask, tokens, past)[:, -width:]
        if mask is not None:
            layout = Layout.of(mask, self.count)
            arguments["attention_mask"] = layout.widened(mask).masked_fill(layout.slots, 1)

    def _insert(self, arguments: Arguments, tokens: Tensor) -> None:
        """Put the virtual tokens in front of each row's first token."""
        size = tokens.shape[:2]
        mask = arguments.get("attention_mask")
        if mask is None:
            mask = torch.ones(size, dtype=torch.long, device=tokens.device)
        layout = Layout.of(mask, self.count)
        embedded = self._model.get_input_embeddings()(tokens) if tokens.dim() == 2 else tokens
        arguments["inputs_embeds"] = layout.filled(layout.widened(embedded), self.embeddings)
        arguments["input_ids"] = None
        arguments["attention_mask"] = layout.widened(mask).masked_fill(layout.slots, 1)
        if "position_ids" in self._argument_names:
            positions = arguments.get("position_ids")
            positions = _positions(mask, tokens, 0) if positions is None else positions.expand(size)
            own = torch.zeros(self.count, dtype=torch.long)
            if self._computes_positions:
                own = torch.arange(-self.count, 0)
            arguments["position_ids"] = layout.filled(layout.widened(positions), own)
        if arguments.get("labels") is not None:
            labels = layout.widened(arguments["labels"].to(tokens.device))
            labels = labels.masked_fill(layout.slots, -100)
            # no given token predicts the first one
            first = layout.given.gather(1, layout.starts[:, None])
            arguments["labels"] = labels.scatter(1, first, -100)
        if arguments.get("token_type_ids") is not None:
            arguments["token_type_ids"] = layout.widened(arguments["token_type_ids"])
        insertion = _Insertion(layout)
        self._insertions.set(insertion)
        if isinstance(arguments.get("logits_to_keep"), Tensor):
            insertion.logit_positions = arguments["logits_to_keep"]
            arguments["logits_to_keep"] = 0
        if self.memory:
            self._wrap_cache(insertion, arguments)

    def _wrap_cache(self, insertion: _Insertion, arguments: Arguments) -> None:
        """Let the cache take the memory for each layer's keys and values of the virtual tokens."""
        cache = cache_in(arguments)
        use_cache = arguments.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self._model.config.get_text_config(), "use_cache", True)
        insertion.is_temporary = cache is None and not use_cache
        if cache is None:
            cache = DynamicCache(config=self._model.config)
        update = cache.update

        def update_with_memory(
            keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any
        ) -> Any:
            if layer in self.memory:
                keys, values = (
                    insertion.layout.filled(computed.transpose(1, 2), own).transpose(1, 2)
                    for computed, own in zip((keys, values), self.memory[layer], strict=True)
                )
            return update(keys, values, layer, *args, **kwargs)

        cache.update = update_with_memory
        insertion.cache = arguments[self._cache_name] = cache

    def _after_forward(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any
    ) -> Any:
        insertion = self._insertions.get()
        self._insertions.set(None)
        if insertion is None:
            return None
        if insertion.cache is not None:
            del insertion.cache.update
        if output is None:  # the forward raised
            return None
        for cache in caches_in(output, insertion.cache):
            setattr(cache, self._cache_mark, True)
        hidden = insertion.cache if insertion.is_temporary else None
        if isinstance(output, tuple):
            parts = tuple(part for part in output if hidden is None or part is not hidden)
            return _narrowed(parts, insertion.layout)
        fields = {
            name: _narrowed(value, insertion.layout)
            for name, value in output.items()
            if hidden is None or value is not hidden
        }
        if insertion.logit_positions is not None:
            fields["logits"] = fields["logits"][:, insertion.logit_positions]
        return type(output)(**fields)


def room_for(lm: LM, count: int) -> int:
    """Return the context length that virtual tokens take: 0 where `position_ids` are given."""
    return 0 if "position_ids" in inspect.signature(lm.model.forward).parameters else count


def _computes_positions(model: nn.Module) -> bool:
    """Return whether positions are turned into angles (rotary), not looked up in a table."""
    return any(name.endswith("inv_freq") for name, _ in model.named_buffers())


def _positions(mask: Tensor | None, tokens: Tensor, past: int) -> Tensor:
    """Return (batch, past + width), each token's position in its row; padding is not counted."""
    if mask is None:
        size = (tokens.shape[0], past + tokens.shape[1])
        mask = torch.ones(size, dtype=torch.long, device=tokens.device)
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _narrowed(value: Any, layout: Layout) -> Any:
    """Narrow logits and hidden states to the given tokens; attention weights stay as they are."""
    if isinstance(value, tuple):
        return tuple(_narrowed(part, layout) for part in value)
    has_columns = isinstance(value, Tensor) and value.dim() == 3
    if has_columns and value.shape[:2] == layout.source.shape:
        return layout.narrowed(value)
    return value
