"""`SmallModel`: a small model of the host's vocabulary as SERAC's counterfactual model.

The host runs as always; in the rows in an edit's scope its logits are replaced by the small model's
(`SmallModelPatch`), which reads the host's tokens with a context put in front (see
`patches/context.py`). Its keys and values are kept after the host's own in the same cache, so that
beams, copies and crops take them along.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.cache import cache_in, cache_name
from errata.lm.encoding import Batch
from errata.patches.context import ContextFor, ContextPatch
from errata.patches.grown import COLUMNS, GROWN


def load_small_model(
    auto_class: Any, setting: str, name: str, device: torch.device
) -> tuple[Any, Any]:
    """Load (model in fp32, tokenizer) from a folder or a hub name.

    Args:
        auto_class: a class of transformers with `from_pretrained`.
        setting: the setting that named the model, for the error.

    Raises:
        ConfigError: there is no such model.
    """
    try:
        model = auto_class.from_pretrained(name, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{setting} is {name!r}, and no such model is at hand: {reason}"
        ) from error
    return model.float().eval().to(device), tokenizer


class SmallModel:
    """A counterfactual model that is a small causal language model; all of it is trained.

    Args:
        lm: the host.
        name: a folder or a hub name.

    Attributes:
        parameters: the parameters to train, by name.

    Raises:
        ConfigError: there is no such model, or it has another vocabulary.
    """

    def __init__(self, lm: LM, name: str) -> None:
        self.model, tokenizer = load_small_model(
            AutoModelForCausalLM, "counterfactual", name, lm.device
        )
        if tokenizer.get_vocab() != lm.tokenizer.get_vocab():
            raise ConfigError(
                f"counterfactual is {name!r}, whose vocabulary is another than the edited model's; "
                "name a small model of the same family, or leave the setting out."
            )
        self.parameters = dict(self.model.named_parameters())

    def logits_at(self, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
        """Return logits (n, vocabulary), fp32, at positions; gradients flow into the parameters."""
        logits: Tensor = self.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
        return logits[rows, columns].float()

    def patch(self, context_for: ContextFor | None) -> ContextPatch:
        """Return the patch by which it answers, on the host, the prompts that get a context."""
        return SmallModelPatch(self.model, context_for)


class SmallModelPatch(ContextPatch):
    """Replaces the host's logits by a small model's in the rows that get a context.

    Hidden states and attentions stay the host's.

    Args:
        small: a causal language model with the host's vocabulary.
        context_for: what it reads before which prompts, see `ContextPatch`.
    """

    grows = False

    def __init__(self, small: PreTrainedModel, context_for: ContextFor | None = None) -> None:
        super().__init__(context_for)
        self.small = small
        self._takes_position_ids = "position_ids" in inspect.signature(small.forward).parameters
        self._small_cache = cache_name(small)

    def _register_hooks(self, lm: LM) -> list[RemovableHandle]:
        host_layers = lm.architecture.n_layers
        return [
            lm.model.register_forward_pre_hook(
                lambda _, args, kwargs: self._prepare(lm, self._arguments(args, kwargs)),
                prepend=True,
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
        """Determine what the small model is to read, before the host's cache grows."""
        state = self._pass
        if state is None:
            return
        if state.route is None:
            widened = self._insert(lm, {**given, "logits_to_keep": 0}, state)
            if widened is not None:
                names = ("input_ids", "attention_mask")
                state.kept["small_inputs"] = {name: widened[name] for name in names}
        elif (ids := given.get("input_ids")) is not None and bool(state.route[:, GROWN].any()):
            seen, layer = state.route[:, COLUMNS:], state.cache.layers[lm.architecture.n_layers]
            columns = int(layer.get_seq_length()) + ids.shape[1]
            mask = F.pad(seen, (0, max(0, columns - seen.shape[1])), value=1)[:, :columns]
            state.kept["small_inputs"] = {"input_ids": ids, "attention_mask": mask}

    def _replace(
        self, model: nn.Module, given: dict[str, Any], output: Any, host_layers: int
    ) -> Any:
        """Return the host's output with the small model's logits, and the loss that follows."""
        state = self._pass
        if state is None or state.route is None:
            return None
        if (inputs := state.kept.get("small_inputs")) is None:
            return None
        cache = output[1] if isinstance(output, tuple) else cache_in(output)
        cache = cache if hasattr(cache, "layers") else None
        small_logits = self._small_logits(inputs, cache, host_layers)[:, -state.size[1] :]
        logits = (output[0] if isinstance(output, tuple) else output.logits).clone()
        kept = given.get("logits_to_keep", 0)
        columns = kept if isinstance(kept, Tensor) else slice(-logits.shape[1], None)
        in_scope = state.route[:, GROWN] > 0
        logits[in_scope] = small_logits[:, columns][in_scope].to(logits)
        if isinstance(output, tuple):
            return (logits, *output[1:])
        output["logits"] = logits
        if (labels := given.get("labels")) is not None:
            output["loss"] = model.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1]
            )  # type: ignore[operator]
        return output

    @torch.no_grad()
    def _small_logits(self, inputs: dict[str, Tensor], cache: Any, host_layers: int) -> Tensor:
        """Run the small model, with its own layers of the cache, and return its logits."""
        options: dict[str, Any] = dict(inputs)
        if self._takes_position_ids:
            width, mask = inputs["input_ids"].shape[1], inputs["attention_mask"]
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        if cache is None:
            small_logits: Tensor = self.small(**options, use_cache=False).logits
            return small_logits
        own = DynamicCache(config=self.small.config)
        if len(cache.layers) > host_layers:
            own.layers = cache.layers[host_layers:]
        options[self._small_cache] = own
        small_logits = self.small(**options, use_cache=True).logits
        if len(cache.layers) == host_layers:
            cache.layers.extend(own.layers)
        return small_logits
