"""Builds a random Llama-like model for benchmarks that measure time only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from errata.lm import LM


class _Words:
    """A tokenizer of made-up words, one for each token id."""

    chat_template = None
    pad_token_id = 0
    eos_token_id = 2
    bos_token_id = None
    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str | list[str], **_: object) -> dict[str, list[Any]]:
        texts = [text] if isinstance(text, str) else text
        ids = [[int(number) for number in re.findall(r"w(\d+)", each)] for each in texts]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return " ".join(f"w{number}" for number in ids)


def random_model(*, layers: int, hidden: int, intermediate: int, heads: int, vocabulary: int) -> LM:
    """Build the model in fp32, the same one every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=256,
    )  # fmt: skip
    return LM(LlamaForCausalLM(config).eval().requires_grad_(False), _Words())  # type: ignore[arg-type]
