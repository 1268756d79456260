"""`SideMemory`: second copies of one value matrix, and the router that chooses between them and the main one.

The router decides once per sequence, on the prompt's tokens alone, padding left out, and the decision holds for the
whole answer: it is kept on the sequence's key-value cache, and copied with it. So one prompt gets one answer: alone, in a
batch, padded on either side, with a target appended, or generated token by token. What is learned, and how, is the
methods' affair.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from errata.errors import ConfigError
from errata.lm import LM, announced_prompt_tokens
from errata.patches.base import Patch

SCORES = ("linear", "activated")
POOLS = ("mean", "max", "last")
MAIN = -1


@dataclass
class Memory:
    """One side memory: `delta` (d_out, d_in) = W' - W, used where its activation exceeds `threshold`."""

    delta: Tensor
    threshold: float


def pool_tokens(scores: Tensor, mask: Tensor, pool: str) -> Tensor:
    """One score per row: scores (..., batch, width) over the tokens under mask (batch, width) -> (..., batch)."""
    kept = scores * mask
    if pool == "mean":
        return kept.sum(-1) / mask.sum(-1).clamp(min=1)
    if pool == "max":
        return kept.amax(-1)
    return kept.gather(-1, last_token(mask).expand(kept.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def last_token(mask: Tensor) -> Tensor:
    """The last column under mask (batch, width), shape (batch,)."""
    return (mask * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).argmax(-1)


@dataclass
class _Pass:
    """One forward call of the model: which tokens are the prompt, and what has been decided."""

    size: tuple[int, int]
    mask: Tensor | None
    cache: Any
    route: Tensor | None


class SideMemory(Patch):
    """Side memories beside the value matrix of `layer`, behind a router.

    Args:
        lm: the base model; nothing is installed on it yet.
        layer: the edited block.
        memories: the side memories; empty means that all goes to the main memory.
        score: `linear`, ||dW k|| as in WISE's equation 3; `activated`, ||act(v) - act(v + dW k)|| as published code has it.
        pool: over the prompt's tokens: `mean`, `max` or `last`.
        relative: choose among memories by activation / threshold, not by activation.

    Reference: WISE, arXiv 2405.14768, equations 3 and 6.
    """

    def __init__(
        self,
        lm: LM,
        layer: int,
        memories: Sequence[Memory] = (),
        score: str = "linear",
        pool: str = "mean",
        relative: bool = False,
    ) -> None:
        self.layer = layer
        self.memories = list(memories)
        self.score = score
        self.pool = pool
        self.relative = relative
        self._handles: list[RemovableHandle] = []
        self._pass: _Pass | None = None
        self._kept = ""
        self._bind: Callable[..., inspect.BoundArguments]
        self._activation = _activation_of(lm) if score == "activated" else None

    def activations(self, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Delta_j(x), shape (memories, batch), of keys (batch, width, d_in), values (batch, width, d_out) under mask."""
        if self.pool == "last" and keys.shape[1] > 1:  # no more than one token of each row is looked at
            at = torch.arange(keys.shape[0], device=keys.device), last_token(mask)
            keys, values, mask = keys[at][:, None], values[at][:, None], mask[at][:, None]
        return torch.stack([self.activation(memory.delta, keys, values, mask) for memory in self.memories])

    def activation(self, delta: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Delta(x) of one memory, shape (batch,); differentiable in `delta`, also where that is zero."""
        change = F.linear(keys.to(delta.dtype), delta)
        if self._activation is not None:
            main = values.to(change.dtype)
            change = self._activation(main + change) - self._activation(main)
        return pool_tokens((change.square().sum(-1) + 1e-12).sqrt(), mask, self.pool)

    def decide(self, activations: Tensor) -> Tensor:
        """(memories, batch) -> (batch,): the memory to use, or `MAIN`."""
        thresholds = activations.new_tensor([memory.threshold for memory in self.memories])
        worth = activations / thresholds[:, None].clamp(min=1e-12) if self.relative else activations
        best = worth.argmax(0)
        enough = activations.gather(0, best[None])[0] > thresholds[best]
        return torch.where(enough, best, MAIN)

    @torch.no_grad()
    def probe(self, lm: LM, prompts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Delta_j of prompts on an LM that this patch is installed on or not: (memories, prompts)."""
        was = self._lm
        self.remove()
        found = []
        module = lm.architecture.value_module(lm.model, self.layer)
        for start in range(0, len(prompts), batch_size):
            batch = lm.prompt_batch(prompts[start : start + batch_size])
            seen: list[Tensor] = []
            hook = module.register_forward_hook(lambda _, args, out, seen=seen: seen.extend((args[0].clone(), out.clone())))
            try:
                lm.run(batch)
            finally:
                hook.remove()
            keys, values = (tensor.reshape(*batch.input_ids.shape, -1) for tensor in seen)
            found.append(self.activations(keys, values, batch.prompt_mask.to(keys.device)))
        if was is not None:
            self.install(was)
        return torch.cat(found, dim=1)

    # installed

    def _attach(self, lm: LM) -> None:
        module = lm.architecture.value_module(lm.model, self.layer)
        self._bind = inspect.signature(lm.model.forward).bind_partial
        self._kept = f"errata_route_{uuid4().hex}"  # another name each time: what was decided before counts no more
        self._handles = [
            lm.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            module.register_forward_hook(self._speak),
            lm.model.register_forward_hook(self._end, with_kwargs=True),
        ]

    def _detach(self, lm: LM) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._bind(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if tokens is None or not self.memories:
            self._pass = None
            return
        size = (int(tokens.shape[0]), int(tokens.shape[1]))
        cache = given.get("past_key_values")
        held = getattr(cache, self._kept, None) if cache is not None and cache.get_seq_length() > 0 else None
        mask = None if held is not None else self._prompt_mask(given, size, tokens.device)
        self._pass = _Pass(size, mask, cache, _for_rows(held, size[0]))

    def _prompt_mask(self, given: dict[str, Any], size: tuple[int, int], device: torch.device) -> Tensor:
        mask = torch.ones(size, dtype=torch.bool, device=device)
        attention, labels, announced = given.get("attention_mask"), given.get("labels"), announced_prompt_tokens()
        if isinstance(attention, Tensor) and attention.dim() == 2:
            mask &= attention[:, -size[1] :].bool()
        if announced is not None:
            wide = _for_rows(announced.to(device), size[0])
            if wide is not None:
                mask &= F.pad(wide, (0, max(0, size[1] - wide.shape[1])))[:, : size[1]]
        elif isinstance(labels, Tensor):
            learned = mask & (labels.to(device) != -100)
            prompt = mask & (learned.cumsum(-1) == 0)  # what follows the target is no prompt either
            mask = torch.where(prompt.any(-1, keepdim=True), prompt, mask)
        return mask

    def _speak(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        current = self._pass
        if current is None:
            return None
        keys = args[0]
        if current.route is None and current.mask is not None:
            rows = (*current.size, -1)
            mask = current.mask.to(keys.device)
            current.route = self.decide(self.activations(keys.reshape(rows), output.reshape(rows), mask))
        if current.route is None:
            return None
        return self._answer(keys, output, current.route, current.size)

    def _answer(self, keys: Tensor, output: Tensor, route: Tensor, size: tuple[int, int]) -> Tensor | None:
        """The main memory's output, with dW k added in the rows that are routed to a side memory."""
        used = set(route.tolist()) - {MAIN}
        if not used:
            return None
        if len(used) == 1 and bool((route != MAIN).all()):
            delta = self.memories[used.pop()].delta
            flat = keys.reshape(-1, keys.shape[-1]).to(delta.dtype)
            return torch.addmm(output.reshape(flat.shape[0], -1).to(delta.dtype), flat, delta.t()).view_as(output).to(output)
        rows_in, rows_out = keys.reshape(*size, -1), output.reshape(*size, -1).clone()
        for j in used:
            delta, mine = self.memories[j].delta, route == j
            rows_out[mine] += F.linear(rows_in[mine].to(delta.dtype), delta).to(output.dtype)
        return rows_out.reshape(output.shape)

    def _end(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._pass is not None and self._pass.route is not None:
            parts = output if isinstance(output, tuple) else [getattr(output, "past_key_values", None)]
            for cache in (self._pass.cache, *parts):
                if hasattr(cache, "get_seq_length"):
                    setattr(cache, self._kept, self._pass.route)
        self._pass = None


def _for_rows(held: Tensor | None, rows: int) -> Tensor | None:
    """Per-sequence data for `rows` rows; beams and several answers repeat each sequence."""
    if held is None or held.shape[0] == rows:
        return held
    if rows % held.shape[0]:
        raise ConfigError(f"{held.shape[0]} sequences were routed, then {rows} rows came with their cache.")
    return held.repeat_interleave(rows // held.shape[0], dim=0)


def _activation_of(lm: LM) -> nn.Module:
    from transformers.activations import ACT2FN

    config = lm.model.config.get_text_config()
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    name = next((n for n in (getattr(config, key, None) for key in names) if isinstance(n, str)), "gelu")
    activation: nn.Module = ACT2FN[name]
    return activation
