"""What an `EditModel` passes on to its base model, and what to do instead of what it does not.

Data (`config`, `device`, a submodule) and what only one family has are passed on. Of what every
model of transformers can do, an `EditModel` has its own, or passes it on when it is named here as
harmless, or refuses: it would change or return the base model without the edits. What a later
transformers adds is refused until it is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import GenerationMixin, PreTrainedModel

from errata.errors import ConfigError

HARMLESS = frozenset(
    "can_generate can_record_outputs compute_transition_scores get_correct_attn_implementation "
    "get_correct_experts_implementation get_decoder get_encoder get_expanded_tied_weights_keys get_experts_implementation "
    "get_input_embeddings get_memory_footprint get_output_embeddings get_parameter_or_buffer get_position_embeddings "
    "heal_tokens is_backend_compatible is_custom_code is_remote_code loss_function named_non_persistent_buffers "
    "num_parameters prepare_inputs_for_generation retrieve_modules_from_names tie_weights "
    "warn_if_padding_and_no_attention_mask".split()
)
"""Methods of every model that look at it, compute from what they are given, or do again what was
done when it was loaded.
"""

_BATCHES = "routers see whole prompts, which packed batches cut; call generate with a padded batch"
_ADAPTERS = "put adapters on the base model and merge them there (PEFT's merge_and_unload) before it is edited"
_TRAINING = "an edited model is not trained; train the base model before it is edited, or what merge_and_unload gives back"
_TOKENS = "the edits are written for the model's tokens as they are; resize the base model before it is edited"
_LOADING = "choose it when the base model is loaded"

INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"),
            _BATCHES,
        ),
        **dict.fromkeys(
            (
                "add_adapter",
                "load_adapter",
                "set_adapter",
                "delete_adapter",
                "enable_adapters",
                "disable_adapters",
                "active_adapters",
                "get_adapter_state_dict",
                "enable_peft_hotswap",
            ),
            _ADAPTERS,
        ),
        **dict.fromkeys(
            (
                "gradient_checkpointing_enable",
                "gradient_checkpointing_disable",
                "activation_checkpointing_enable",
                "activation_checkpointing_disable",
                "enable_input_require_grads",
                "disable_input_require_grads",
            ),
            _TRAINING,
        ),
        **dict.fromkeys(
            ("resize_token_embeddings", "resize_position_embeddings", "set_input_embeddings"),
            _TOKENS,
        ),
        **dict.fromkeys(
            ("set_attn_implementation", "set_experts_implementation", "set_use_kernels"), _LOADING
        ),
        "dequantize": "load the base model without quantisation, then edit it",
        "load_custom_generate": "give custom_generate to generate of the base model",
    }
)
"""Method of every model -> what to do instead."""


def passed_on(base: PreTrainedModel, name: str) -> Any:
    """What an `EditModel` has under a name that it does not know itself.

    Raises:
        AttributeError: the base model has nothing of that name.
    """
    found = getattr(base, name)
    method = callable(found) and getattr(found, "__self__", None) in (base, type(base))
    general = hasattr(PreTrainedModel, name) or hasattr(GenerationMixin, name)
    return _refusal(name) if method and general and name not in HARMLESS else found


def _refusal(name: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> None:
        instead = INSTEAD.get(
            name, f"call get_base_model().{name} if the base model is meant, before it is edited"
        )
        raise ConfigError(f"{name} is not possible on an edited model: {instead}.")

    return refuse
