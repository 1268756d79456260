"""`StandIn`: prompts in scope are answered by another, small model, which reads a context before
them.

The host runs as ever; in the rows in scope its logits are replaced by the small model's. That one
sees what the host was given with the context put in front (see `context.py`). Its keys and values
are kept behind the host's own in the same cache, so beams, copies and crops take them along.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache, PreTrainedModel

from errata.lm import LM
from errata.patches.context import ContextFor, ContextPatch


class StandIn(ContextPatch):
    """Another model's logits in the rows that get a context.

    Args:
        small: a causal language model with the host's vocabulary.
        context_for: what it reads before which prompts, see `ContextPatch`.
        room: tokens of the model's context that are left to the answer.

    Hidden states and attentions stay the host's.
    """

    def __init__(
        self, small: PreTrainedModel, context_for: ContextFor | None = None, room: int | None = None
    ) -> None:
        super().__init__(context_for, room)
        self.small = small
        self._counts_places = "position_ids" in inspect.signature(small.forward).parameters

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        host_layers = lm.architecture.n_layers
        return [
            lm.model.register_forward_pre_hook(
                lambda _, args, kwargs: self._prepare(lm, self._arguments(args, kwargs)),
                with_kwargs=True,
            ),
            lm.model.register_forward_hook(
                lambda model, args, kwargs, output: self._replace(
                    model, self._arguments(args, kwargs), output, host_layers
                ),
                with_kwargs=True,
            ),
        ]

    def _prepare(self, lm: LM, given: dict[str, Any]) -> None:
        """Work out what the small model is to read, before the host's cache grows."""
        now = self._pass
        if now is None:
            return
        if now.route is None:
            widened = self._insert(lm, {**given, "logits_to_keep": 0}, now)
            if widened is not None:
                now.kept["read"] = {
                    "input_ids": widened["input_ids"],
                    "attention_mask": widened["attention_mask"],
                }
        elif (ids := given.get("input_ids")) is not None and bool((now.route[:, 0] > 0).any()):
            seen, held = (
                now.route[:, 2:],
                int(now.cache.layers[lm.architecture.n_layers].get_seq_length()),
            )
            mask = F.pad(seen, (0, max(0, held + ids.shape[1] - seen.shape[1])), value=1)[
                :, : held + ids.shape[1]
            ]
            now.kept["read"] = {"input_ids": ids, "attention_mask": mask}

    def _replace(
        self, model: nn.Module, given: dict[str, Any], output: Any, host_layers: int
    ) -> Any:
        now = self._pass
        if now is None or now.route is None or (read := now.kept.get("read")) is None:
            return None
        width = read["input_ids"].shape[1]
        options: dict[str, Any] = dict(read)
        if self._counts_places:
            options["position_ids"] = (read["attention_mask"].cumsum(-1) - 1).clamp(min=0)[
                :, -width:
            ]
        cache = output[1] if isinstance(output, tuple) else output.get("past_key_values")
        cache = cache if hasattr(cache, "layers") else None
        if cache is not None:
            own = DynamicCache(config=self.small.config)
            if len(cache.layers) > host_layers:
                own.layers = cache.layers[host_layers:]
            options["past_key_values"] = own
        with torch.no_grad():
            logits = self.small(**options, use_cache=cache is not None).logits[:, -now.size[1] :]
        if cache is not None and len(cache.layers) == host_layers:
            cache.layers.extend(own.layers)
        inside = now.route[:, 0] > 0
        said = (output[0] if isinstance(output, tuple) else output.logits).clone()
        kept = given.get("logits_to_keep", 0)
        logits = logits[:, kept] if isinstance(kept, Tensor) else logits[:, -said.shape[1] :]
        said[inside] = logits[inside].to(said)
        if isinstance(output, tuple):
            return (said, *output[1:])
        output["logits"] = said
        if (labels := given.get("labels")) is not None:
            output["loss"] = model.loss_function(
                logits=said, labels=labels, vocab_size=said.shape[-1]
            )  # type: ignore[operator]
        return output
