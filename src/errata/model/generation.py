"""Which options of `generate` work with edits, and what to do instead of the others.

A patch that reads prompts must see each prompt whole, once, and know where it ends; an option that
hides that is refused, never answered by the base model in silence. A patch that only changes
weights refuses nothing. docs/generation.md has the whole table.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LM
from errata.lm.cache import cache_in
from errata.methods.base import Method
from errata.patches import Patch

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "prefill_chunk_size": "the prompt must be read whole for its edit to be found; leave it "
        "out",
        "token_healing": "it changes the prompt while it is read; call "
        "model.heal_tokens(ids, tokenizer) first and generate from what that gives",
        "guidance_scale": "it reads a second prompt beside the first, which no edit is looked up "
        "for; leave it out",
        "negative_prompt_ids": "it reads a second prompt beside the first, which no edit is looked "
        "up for; leave it out",
        "assistant_early_exit": "the model's own lower layers would guess as another model; give "
        "an assistant_model, or prompt_lookup_num_tokens",
        "use_mtp": "the model's own further heads would guess without the edits; give an "
        "assistant_model, or prompt_lookup_num_tokens",
        "custom_generate": "a loop of its own may read other prompts; call the model's forward "
        "from it",
        "penalty_alpha": "contrastive search is code from the hub; leave it out",
        "dola_layers": "DoLa is code from the hub and reads single layers; leave it out",
        "num_beam_groups": "group beam search is code from the hub; use num_beams",
        "constraints": "constrained beam search is code from the hub; use num_beams",
        "force_words_ids": "constrained beam search is code from the hub; use num_beams",
        "compile_config": "what decides which edit answers is Python and is not compiled; leave it "
        "out",
    }
)
"""Refused option of `generate` -> why, and what to do instead."""
NEUTRAL: Mapping[str, int] = MappingProxyType({"guidance_scale": 1, "num_beam_groups": 1})
"""Values, beside None and 0, at which such an option does nothing."""


@dataclass(frozen=True)
class GenerateCall:
    """A call of the base model's `generate`.

    Attributes:
        options: its arguments by name.
        mask: (batch, width) bool, True at the prompts' tokens; None where no prompt is given.
        ids: (batch, width), the prompts' token ids; None where they are not all given.
    """

    options: dict[str, Any]
    mask: Tensor | None
    ids: Tensor | None


def check_tokens(method: Method, inputs: Mapping[str, Any]) -> None:
    """Make sure that a method that reads the prompt's tokens is given them.

    Raises:
        ConfigError: there are only embeddings.
    """
    embedded = inputs.get("inputs_embeds") is not None and inputs.get("input_ids") is None
    if method.reads_text and embedded:
        raise ConfigError(
            f"inputs_embeds are not possible with {method.config.method}, which reads the prompt's "
            "words; give input_ids."
        )


def prepare_call(lm: LM, patch: Patch, inputs: Mapping[str, Any]) -> GenerateCall:
    """Prepare a call of `generate` with a patch installed; `inputs` are its arguments by name.

    A filled key-value cache is reset where its contents depend on the patch's decision: the prompt
    is then read again.

    Raises:
        ConfigError: an option would hide the prompt.
    """
    options = dict(inputs)
    ids = options.pop("inputs", None)
    if ids is not None:
        options.setdefault("input_ids", ids)
    ids, embedded = options.get("input_ids"), options.get("inputs_embeds")
    if patch.reads_prompts:
        check_options(options, lm.model.generation_config)
        _disable_compile(options)
    prompt = embedded if ids is None else ids
    if prompt is None:
        return GenerateCall(options, None, None)
    mask = options.get("attention_mask")
    if mask is None:
        mask = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
        pad = lm.tokenizer.pad_token_id
        if ids is not None and pad is not None and pad not in lm.end_ids:
            mask = ids != pad
    all_ids = ids if ids is not None and ids.shape == mask.shape else None
    cache = cache_in(options)
    if all_ids is None or cache is None or not cache.get_seq_length():
        return GenerateCall(options, mask.bool(), all_ids)
    if patch.reads_prompts and not patch.keeps_cache(cache, all_ids, mask.bool()):
        cache.reset()
    return GenerateCall(options, mask.bool(), all_ids)


def _disable_compile(options: dict[str, Any]) -> None:
    """Have nothing compiled, in the config given or beside it: transformers wants one of both."""
    config = options.get("generation_config")
    if config is None:
        options.setdefault("disable_compile", True)
    elif "disable_compile" not in options:
        options["generation_config"] = config = copy.copy(config)
        config.disable_compile = True


def check_options(options: Mapping[str, Any], default: Any) -> None:
    """Make sure that no option hides the prompt.

    Args:
        options: of `generate`.
        default: the model's own `generation_config`, for what `options` leave out.

    Raises:
        ConfigError: one does.
    """
    config = options.get("generation_config") or default

    def value(name: str) -> Any:
        return options[name] if options.get(name) is not None else getattr(config, name, None)

    for name, why in REFUSED.items():
        given = value(name)
        if isinstance(given, Tensor) or given not in (None, 0, NEUTRAL.get(name)):
            raise ConfigError(f"{name} is not possible with edits: {why}.")
    if value("cache_implementation") == "paged":
        raise ConfigError(
            "cache_implementation=paged is not possible with edits: continuous batching reads "
            "several prompts as one row; call generate with a batch, padded on the left."
        )
