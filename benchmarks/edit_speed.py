"""Measures seconds per step of an edit: the upper layers on cached inputs, and the whole model.

    python benchmarks/edit_speed.py [--pairs 5] [--steps 4] [--hidden 320]

A random Llama-like model of 12 layers (edited layer 9) and one of 32 (edited layer 27, WISE's own
choice); one thread. One step is what WISE does: forward, loss at the target's tokens, gradient of
dW of the edited value matrix. The time of the cached way includes its one pass below the edited
layer. Both ways run in turns, and the median over the pairs of their ratio is reported, so that
another job on the machine disturbs both alike. Seconds are the processor's own (on one thread of an
idle machine the clock says the same).
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from random_model import random_model
from torch.nn import functional as F

from errata.lm import LM
from errata.lm.encoding import Batch
from errata.lm.tail import Tail

VOCABULARY, ROWS, PROMPT, TARGET = 8192, 11, 20, 4
MODELS = ((12, 9), (32, 27))


def random_rows() -> Batch:
    """Draw an edit and ten rows with a prefix, as WISE has them (20 + 4 tokens)."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (ROWS, PROMPT + TARGET), generator=draw)
    place = torch.arange(PROMPT + TARGET).expand(ROWS, -1)
    return Batch(
        ids, torch.ones_like(ids), place < PROMPT, place >= PROMPT, torch.zeros_like(ids).bool()
    )


def learn(lm: LM, layer: int, batch: Batch, steps: int, cached: bool) -> tuple[float, float]:
    """Learn one edit; returns (seconds, loss after)."""
    begun = time.process_time()
    tail = Tail(lm, layer, batch, cached=cached)
    rows, columns, labels = batch.label_positions(batch.target_mask)
    delta = torch.zeros(lm.architecture.d_out, lm.architecture.d_in, requires_grad=True)
    loss = torch.zeros(())
    for _ in range(steps):
        logits = tail.logits(tail.values + F.linear(tail.keys, delta), rows, columns)
        loss = F.cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(loss, delta)
        with torch.no_grad():
            delta -= gradient
    return time.process_time() - begun, loss.item()


def measure(layers: int, layer: int, hidden: int, steps: int, pairs: int) -> str:
    """Time a step in both ways; returns a line to print."""
    sizes = {"hidden": hidden, "intermediate": hidden * 8 // 3 // 8 * 8, "heads": hidden // 64 or 1}
    lm, batch = random_model(layers=layers, vocabulary=VOCABULARY, **sizes), random_rows()
    for cached in (True, False):
        learn(lm, layer, batch, 1, cached)
    fast, slow = [], []
    for turn in range(pairs):
        for cached in (True, False) if turn % 2 else (False, True):
            (fast if cached else slow).append(learn(lm, layer, batch, steps, cached))
    if max(abs(a[1] - b[1]) for a, b in zip(fast, slow, strict=True)) > 1e-3:
        raise SystemExit("the two ways do not learn the same; their times cannot be compared")
    cached_step, full_step = (
        statistics.median(seconds for seconds, _ in way) / steps for way in (fast, slow)
    )
    speedup = statistics.median(b[0] / a[0] for a, b in zip(fast, slow, strict=True))
    return (
        f"{layers} layers, edited layer {layer}: {cached_step:.4f} s a step cached, "
        f"{full_step:.4f} s full; {speedup:.2f} times as fast (median of {pairs} pairs)"
    )


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--pairs", type=int, default=5, help="measured pairs, cached and full in turns"
    )
    parser.add_argument("--steps", type=int, default=10, help="steps of an edit")
    parser.add_argument("--hidden", type=int, default=320, help="hidden size, a multiple of 64")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"hidden size {given.hidden}, {ROWS} rows of {PROMPT + TARGET} tokens, "
        f"{given.steps} steps, one thread"
    )
    for layers, layer in MODELS:
        print(measure(layers, layer, given.hidden, given.steps, given.pairs), flush=True)


if __name__ == "__main__":
    main()
