"""What an installed side memory costs while generating, as a share of the base model's own time.

    python benchmarks/overhead.py [--json] [--pairs 7] [--tokens 64]

A random Llama-like model of 12 layers and hidden size 768, 64 new tokens, batch 1 and 8, one thread; one merged WISE memory
at the default layer. Routed to the side memory (every prompt is in scope) and to the main one (none is). The base model and
the edited one run in turns, and the median over the pairs of their ratio is reported. Seconds are the processor's own
(on one thread of an idle machine the clock says the same), so that waiting for other jobs does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from errata.lm import LM, prompt_tokens
from errata.patches.side_memory import Memory, SideMemory

VOCABULARY, PROMPT = 32000, 16


def random_model() -> LM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=256,
    )  # fmt: skip
    return LM(LlamaForCausalLM(config).eval().requires_grad_(False), _NoTokenizer())  # type: ignore[arg-type]


class _NoTokenizer:
    """Prompts are made of random ids here; nothing is read or written."""

    chat_template = None
    pad_token_id = 0
    eos_token_id = 2


def seconds(lm: LM, ids: torch.Tensor, tokens: int) -> float:
    begun = time.process_time()
    mask = torch.ones_like(ids)
    with torch.no_grad(), prompt_tokens(mask.bool()):
        out = lm.model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
        )
    if out.shape[1] != ids.shape[1] + tokens:
        raise SystemExit("fewer tokens than asked for")
    return time.process_time() - begun


def measure(lm: LM, batch: int, to: str, tokens: int, pairs: int) -> dict[str, Any]:
    layer = lm.architecture.default_layer()
    draw = torch.Generator().manual_seed(1)
    delta = torch.randn(lm.architecture.d_out, lm.architecture.d_in, generator=draw) * 0.01
    patch = SideMemory(lm, layer, [Memory(delta, 0.0 if to == "side" else float("inf"))])
    ids = torch.randint(3, VOCABULARY, (batch, PROMPT), generator=draw)
    seconds(lm, ids, 4)
    ratios, base = [], []
    for turn in range(pairs):
        took = {}
        for edited in (True, False) if turn % 2 else (False, True):
            if edited:
                patch.install(lm)
            took[edited] = seconds(lm, ids, tokens)
            patch.remove()
        ratios.append(took[True] / took[False])
        base.append(took[False])
    return {
        "batch": batch,
        "routed_to": to,
        "new_tokens": tokens,
        "base_seconds": statistics.median(base),
        "overhead": statistics.median(ratios) - 1,
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--pairs", type=int, default=7, help="measured pairs, base and edited in turns")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lm = random_model()
    found = [measure(lm, batch, to, given.tokens, given.pairs) for batch in (1, 8) for to in ("side", "main")]
    if given.json:
        print(json.dumps(found))
        return
    for row in found:
        print(
            f"batch {row['batch']}, routed to the {row['routed_to']} memory: {row['overhead']:+.1%} on "
            f"{row['base_seconds']:.2f} s (median of {row['pairs']} pairs, {row['new_tokens']} new tokens)"
        )


if __name__ == "__main__":
    main()
