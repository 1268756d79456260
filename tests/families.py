"""Tiny random models of every family, and tiny tokenizers, built in process: nothing is downloaded.

Every model reads the same 320 tokens and has 4 layers of width 32, with a feed-forward width other
than 32. Weights are drawn wide, and biases too, so that different prompts lead to different
continuations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import tokenizers as tk
import torch
import transformers as tf
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 320
N_LAYERS = 4
HIDDEN = 32

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WIDE: dict[str, Any] = {"intermediate_size": 64}
_GROUPED: dict[str, Any] = {
    "intermediate_size": 64,
    "num_key_value_heads": 2,
}  # grouped-query attention
_GPT: dict[str, Any] = {"n_inner": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# Gemma scales its embeddings up; with a tied head a random one would only repeat the last token.
_GEMMA: dict[str, Any] = dict(_GROUPED, head_dim=16, tie_word_embeddings=False)
_GEMMA_2: dict[str, Any] = dict(_GEMMA, query_pre_attn_scalar=16, sliding_window=16)


def _build(family: str, /, **settings: Any) -> PreTrainedModel:
    """A model for causal language modelling from `<family>Config` with the common sizes, ready to
    read.
    """
    return _drawn(
        getattr(tf, f"{family}Config")(**{**_COMMON, **settings}), tf.AutoModelForCausalLM
    )


def _drawn(config: tf.PreTrainedConfig, owner: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = owner.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def _gemma3_with_images() -> PreTrainedModel:
    """A model that also sees: its vision tower has as many blocks as its language model."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
    }
    config = tf.Gemma3Config(
        text_config={**_COMMON, **_GEMMA_2},
        vision_config=dict(vision, model_type="siglip_vision_model", image_size=8, patch_size=4),
        tie_word_embeddings=False,
        mm_tokens_per_image=4,
        image_token_index=VOCABULARY - 1,
    )
    return _drawn(config, tf.AutoModelForImageTextToText)


FAMILIES_TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": partial(_build, "Llama", **_GROUPED),
    "mistral": partial(_build, "Mistral", **_GROUPED),
    "qwen2": partial(_build, "Qwen2", **_GROUPED),
    "qwen3": partial(_build, "Qwen3", **_GROUPED, head_dim=16),
    "gemma": partial(_build, "Gemma", **_GEMMA),
    "gemma2": partial(_build, "Gemma2", **_GEMMA_2),
    "gemma3_text": partial(_build, "Gemma3Text", **_GEMMA_2),
    "phi": partial(_build, "Phi", **_WIDE),
    "phi3": partial(_build, "Phi3", **_GROUPED),
    "gpt2": partial(_build, "GPT2", **_GPT),
    "gptj": partial(_build, "GPTJ", **_GPT, rotary_dim=4),
    "gpt_neox": partial(_build, "GPTNeoX", **_WIDE),
    "gpt_neo": partial(
        _build, "GPTNeo", **_WIDE, attention_types=[[["global", "local"], 2]], window_size=16
    ),
    "opt": partial(
        _build, "OPT", ffn_dim=64, word_embed_proj_dim=HIDDEN, dropout=0.0, init_std=0.2
    ),
    "bloom": partial(_build, "Bloom"),
    "falcon": partial(_build, "Falcon", ffn_hidden_size=64),
    "mpt": partial(_build, "Mpt", max_seq_len=128),
    "starcoder2": partial(_build, "Starcoder2", **_GROUPED),
    "olmo": partial(_build, "Olmo", **_GROUPED),
    "olmo2": partial(_build, "Olmo2", **_GROUPED),
    "stablelm": partial(_build, "StableLm", **_GROUPED),
    "cohere": partial(_build, "Cohere", **_GROUPED, logit_scale=1.0),
    "granite": partial(_build, "Granite", **_GROUPED, logits_scaling=2.0),
}

TWELVE = (
    "llama", "gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon", "mpt", "gemma2", "qwen3", "phi3",
    "cohere",
)  # fmt: skip

# Not language models alone, or not of the kind that edits are written into.
OUTSIDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": partial(_build, "Mixtral", **_GROUPED, num_local_experts=4),
    "qwen2_moe": partial(_build, "Qwen2Moe", **_GROUPED, num_experts=4, moe_intermediate_size=16),
    "mamba": partial(_build, "Mamba", state_size=4, intermediate_size=64),
    "gemma3": _gemma3_with_images,
}


@cache
def _original(name: str) -> PreTrainedModel:
    return {**FAMILIES_TINY, **OUTSIDERS}[name]()


def tiny_model(name: str) -> PreTrainedModel:
    """A fresh copy of a tiny model, with the same weights each time: no test can hurt another."""
    return copy.deepcopy(_original(name))


_TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "The president of the United States lives in Washington.",
    "Who wrote the book? The author of the book was born in London.",
    "The company was founded by two brothers in the city of New York.",
    "Where is the tower? It stands in the north of the country.",
]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_ASCII = [chr(code) for code in range(32, 127)]


def tiny_tokenizer(kind: str = "bytelevel") -> PreTrainedTokenizerFast:
    """A tokenizer of at most 320 tokens with pad 0, bos 1 and eos 2. The kinds:

    - "bytelevel": byte-level BPE as in GPT-2; a space belongs to the word after it, nothing is
      added;
    - "sentencepiece": as in Llama-2; spaces are written `▁`, and a text gets one in front;
    - "noprefix": byte-level, but it puts a space in front of a text by itself, so callers must not;
    - "bos": byte-level, and a text starts with the bos token, added by a post-processor.
    """
    return copy.deepcopy(_trained(kind))


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with a chat template of two roles, "user" and "assistant"."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}"
        "{{ message['role'] }}: {{ message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return tokenizer


@cache
def _trained(kind: str) -> PreTrainedTokenizerFast:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "special_tokens": _SPECIAL,
        "show_progress": False,
    }
    inner = tk.Tokenizer(tk.models.BPE(unk_token="<unk>"))
    if kind == "sentencepiece":
        inner.pre_tokenizer = tk.pre_tokenizers.Metaspace(prepend_scheme="always")
        inner.decoder = tk.decoders.Metaspace(prepend_scheme="always")
        alphabet = _ASCII
    elif kind in ("bytelevel", "noprefix", "bos"):
        inner.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=kind == "noprefix")
        inner.decoder = tk.decoders.ByteLevel()
        alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    else:
        raise ValueError(f"no tokenizer of kind {kind!r}")
    inner.train_from_iterator(_TEXTS, tk.trainers.BpeTrainer(initial_alphabet=alphabet, **settings))
    if kind == "bos":
        inner.post_processor = tk.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
