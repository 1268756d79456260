"""A random Llama-like model for benchmarks that ask for time only: no weights are read, no text is
made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from errata.lm import LM


class _Words:
    """Prompts are random ids here; a memory that wants to read them finds a word for each."""

    chat_template = None
    pad_token_id = 0
    eos_token_id = 2
    bos_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return " ".join(f"w{number}" for number in ids)


def random_model(*, layers: int, hidden: int, intermediate: int, heads: int, vocabulary: int) -> LM:
    """Such a model, the same one every time, in fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=256,
    )  # fmt: skip
    return LM(LlamaForCausalLM(config).eval().requires_grad_(False), _Words())  # type: ignore[arg-type]
