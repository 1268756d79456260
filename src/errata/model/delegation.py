"""Which attributes of its base model an `EditModel` has, and what to call instead of the others.

Data (`config`, `device`, a submodule) and what only one family has are the base model's. A method
that all models of transformers have is defined by `EditModel` itself, or is the base model's when
`HARMLESS` names it, or is refused: it would change or return the base model without the edits. A
method that a later transformers adds is refused until it is named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import GenerationMixin, PreTrainedModel

from errata.errors import ConfigError

HARMLESS = frozenset(
    "can_generate can_record_outputs compute_transition_scores get_correct_attn_implementation "
    "get_correct_experts_implementation get_decoder get_encoder get_expanded_tied_weights_keys "
    "get_experts_implementation get_input_embeddings get_memory_footprint get_output_embeddings "
    "get_parameter_or_buffer get_position_embeddings heal_tokens is_backend_compatible "
    "is_custom_code is_remote_code loss_function named_non_persistent_buffers num_parameters "
    "prepare_inputs_for_generation retrieve_modules_from_names tie_weights "
    "warn_if_padding_and_no_attention_mask".split()
)
"""Methods of every model that read it, compute from their arguments, or repeat a step of loading
it.
"""

_BATCHES = "routers see whole prompts, which packed batches cut; call generate with a padded batch"
_ADAPTERS = (
    "put adapters on the base model and merge them there (PEFT's merge_and_unload) before it is "
    "edited"
)
_TRAINING = (
    "an edited model is not trained; train the base model before it is edited, or what "
    "merge_and_unload gives back"
)
_TOKENS = (
    "the edits are written for the model's tokens as they are; resize the base model before it is "
    "edited"
)
_LOADING = "choose it when the base model is loaded"

INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "add_adapter": _ADAPTERS,
        "load_adapter": _ADAPTERS,
        "set_adapter": _ADAPTERS,
        "delete_adapter": _ADAPTERS,
        "enable_adapters": _ADAPTERS,
        "disable_adapters": _ADAPTERS,
        "active_adapters": _ADAPTERS,
        "get_adapter_state_dict": _ADAPTERS,
        "enable_peft_hotswap": _ADAPTERS,
        "generate_batch": _BATCHES,
        "init_continuous_batching": _BATCHES,
        "continuous_batching_context_manager": _BATCHES,
        "gradient_checkpointing_enable": _TRAINING,
        "gradient_checkpointing_disable": _TRAINING,
        "activation_checkpointing_enable": _TRAINING,
        "activation_checkpointing_disable": _TRAINING,
        "enable_input_require_grads": _TRAINING,
        "disable_input_require_grads": _TRAINING,
        "resize_token_embeddings": _TOKENS,
        "resize_position_embeddings": _TOKENS,
        "set_input_embeddings": _TOKENS,
        "set_attn_implementation": _LOADING,
        "set_experts_implementation": _LOADING,
        "set_use_kernels": _LOADING,
        "dequantize": "load the base model without quantisation, then edit it",
        "load_custom_generate": "give custom_generate to generate of the base model",
        "load_state_dict": "edits are more than their tensors; use save_pretrained and "
        "from_pretrained (or pickle)",
        "to_empty": "the weights would be lost; call to() with a device",
    }
)
"""Refused method of every model -> what to do instead."""


def base_attribute(base: PreTrainedModel, name: str) -> Any:
    """Return the base model's attribute of this name, or a function that refuses when it is called.

    Raises:
        AttributeError: the base model has none.
    """
    attribute = getattr(base, name)
    is_method = callable(attribute) and getattr(attribute, "__self__", None) in (base, type(base))
    of_every_model = hasattr(PreTrainedModel, name) or hasattr(GenerationMixin, name)
    return refusal(name) if is_method and of_every_model and name not in HARMLESS else attribute


def refusal(name: str) -> Any:
    """Return a method that raises `ConfigError` and says what to do instead."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        instead = INSTEAD.get(
            name, f"call get_base_model().{name} if the base model is meant, before it is edited"
        )
        raise ConfigError(f"{name} is not possible on an edited model: {instead}.")

    return refuse
