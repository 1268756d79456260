"""Which of transformers' ways to generate are right with edits, and what is refused with what to do
instead.

A patch that reads prompts needs to see each prompt whole, once, and to know where it ends; what
hides that from it is refused, never answered silently by the base model. A patch that only changes
weights refuses nothing: it is another model. docs/generation.md is the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from errata.errors import ConfigError
from errata.lm import LM
from errata.patches import Patch

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "prefill_chunk_size": "the prompt must be read whole for its edit to be found; leave it out",
        "token_healing": "it changes the prompt while it is read; call model.heal_tokens(ids, tokenizer) first and generate "
        "from what that gives",
        "guidance_scale": "it reads a second prompt beside the first, which no edit is looked up for; leave it out",
        "negative_prompt_ids": "it reads a second prompt beside the first, which no edit is looked up for; leave it out",
        "assistant_early_exit": "the model's own lower layers would guess as another model; give an assistant_model, or "
        "prompt_lookup_num_tokens",
        "use_mtp": "the model's own further heads would guess without the edits; give an assistant_model, or "
        "prompt_lookup_num_tokens",
        "custom_generate": "a loop of its own may read other prompts; call the model's forward from it",
        "penalty_alpha": "contrastive search is code from the hub; leave it out",
        "dola_layers": "DoLa is code from the hub and reads single layers; leave it out",
        "num_beam_groups": "group beam search is code from the hub; use num_beams",
        "constraints": "constrained beam search is code from the hub; use num_beams",
        "force_words_ids": "constrained beam search is code from the hub; use num_beams",
        "compile_config": "what decides which edit answers is Python and is not compiled; leave it out",
    }
)
"""Options of `generate`, and why they are refused."""
NEUTRAL: Mapping[str, int] = MappingProxyType({"guidance_scale": 1, "num_beam_groups": 1})
"""Values, beside None and 0, at which such an option does nothing."""
PAGED = "continuous batching reads several prompts as one row; call generate with a batch, padded on the left"


@dataclass(frozen=True)
class Prepared:
    """A call of `generate`, ready to be made.

    Attributes:
        options: its arguments.
        mask: (batch, width) bool, the prompts' tokens; None where no prompt is given.
        ids: (batch, width), the tokens, where all of them are at hand.
    """

    options: dict[str, Any]
    mask: Tensor | None
    ids: Tensor | None


def prepared(lm: LM, patch: Patch, inputs: Mapping[str, Any]) -> Prepared:
    """A call of the model's `generate` with the edits in; `inputs` are its arguments by name.

    A key-value cache that has read something is read anew where what it holds depends on the edit
    that answers.

    Raises:
        ConfigError: an option would hide the prompt.
    """
    options = dict(inputs)
    ids = options.pop("inputs", None)
    if ids is not None:
        options.setdefault("input_ids", ids)
    ids, embedded = options.get("input_ids"), options.get("inputs_embeds")
    if patch.reads_prompts:
        refuse(options, lm.model.generation_config)
        options.setdefault("disable_compile", True)
    shape = embedded if ids is None else ids
    if shape is None:
        return Prepared(options, None, None)
    mask = options.get("attention_mask")
    if mask is None:
        mask = torch.ones(shape.shape[:2], dtype=torch.bool, device=shape.device)
        pad = lm.tokenizer.pad_token_id
        if ids is not None and pad is not None and pad not in lm.end_ids:
            mask = ids != pad
    whole = ids if ids is not None and ids.shape == mask.shape else None
    cache = options.get("past_key_values")
    if (
        patch.reads_prompts
        and patch.changes_cache
        and whole is not None
        and cache is not None
        and cache.get_seq_length()
    ):
        cache.reset()
    return Prepared(options, mask.bool(), whole)


def refuse(options: Mapping[str, Any], standing: Any) -> None:
    """Make sure that no option hides the prompt.

    Args:
        options: of `generate`.
        standing: the model's own `generation_config`, for what the options leave open.

    Raises:
        ConfigError: one does.
    """
    config = options.get("generation_config") or standing

    def value(name: str) -> Any:
        return options[name] if options.get(name) is not None else getattr(config, name, None)

    for name, why in REFUSED.items():
        given = value(name)
        if isinstance(given, Tensor) or given not in (None, 0, NEUTRAL.get(name)):
            raise ConfigError(f"{name} is not possible with edits: {why}.")
    if value("cache_implementation") == "paged":
        raise ConfigError(f"cache_implementation=paged is not possible with edits: {PAGED}.")
