"""Measures what an installed memory adds to the time of generation.

    python benchmarks/overhead.py [--rounds 5] [--tokens 64] [--memory wise|folio] [--leaves 10000]

A random Llama-like model of 12 layers and hidden size 768, a prompt of 16 tokens and 64 new ones,
batch 1 and 8, one thread. With wise, one merged memory at the default layer, routed to the side
memory (every prompt is in scope) or to the main one (none is). With folio, 10,000 leaves of six
rows in ten folios, mapped from disk; every prompt mentions the subject of ten of them and one
speaks (side), or it mentions none (main). Base and edited model generate the same text in lockstep,
one forward pass each in turns, so that whatever else the machine does falls on both alike. Of each
pass (the prompt's, then each token's) the median over the rounds counts; the overhead compares
their sums, and those of one pass per token only. Seconds are the processor's own.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time

import torch
from random_model import random_model
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, PreTrainedModel

from errata import Edit
from errata.lm import LM
from errata.lm.cache import cache_name
from errata.methods.association.folio.calibration import RouterCalibration
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.intents import INTENTS, IntentClassifier
from errata.methods.association.folio.leaf import Leaf
from errata.methods.association.folio.patch import FolioMemory
from errata.methods.association.folio.question_reader import VIEWS
from errata.methods.association.folio.question_space import DIMENSIONS, QuestionSpace
from errata.methods.association.wise.patch import Memory, SideMemory
from errata.words.names import WordWeights

VOCABULARY, PROMPT = 32000, 16
FOLIO, ROWS = FolioConfig().edits_per_file, 6


class Generation:
    """A greedy generation that runs one forward pass at a time."""

    def __init__(self, model: PreTrainedModel, ids: torch.Tensor) -> None:
        self.model, self.ids, self.cache = model, ids, DynamicCache(config=model.config)
        self.given = {cache_name(model): self.cache}
        self.width = ids.shape[1]

    def forward(self) -> float:
        """Run one pass, the prompt's or the next token's; returns its seconds."""
        mask = torch.ones(self.ids.shape[0], self.width, dtype=torch.long)
        begun = time.process_time()
        logits = self.model(self.ids, attention_mask=mask, logits_to_keep=1, **self.given).logits
        took = time.process_time() - begun
        self.ids = logits[:, -1:].argmax(-1)
        self.width += 1
        return took


def side_memory(lm: LM, ids: torch.Tensor, to: str, leaves: int) -> SideMemory:
    """Make a merged side memory of WISE."""
    draw = torch.Generator().manual_seed(2)
    delta = torch.randn(lm.architecture.d_out, lm.architecture.d_in, generator=draw) * 0.01
    return SideMemory(
        lm, lm.architecture.default_layer(), [Memory(delta, 0.0 if to == "side" else float("inf"))]
    )


def folio_memory(lm: LM, ids: torch.Tensor, to: str, leaves: int) -> FolioMemory:
    """Make a Folio memory; a row of `ids` mentions the subject of ten leaves, or of none."""
    draw = torch.Generator().manual_seed(2)
    hidden, dimensions = lm.architecture.hidden_size, DIMENSIONS
    memory = FolioMemory(lm, min_subject_overlap=0.7, edits_per_file=FOLIO, confidence=0.9999)
    projection = torch.randn(VIEWS, hidden, dimensions, generator=draw) / hidden**0.5
    shared = torch.full((VIEWS, dimensions), 0.5)
    space = QuestionSpace(torch.zeros(VIEWS, hidden), projection, shared, torch.ones(VIEWS), 0.0)
    intents = IntentClassifier(
        torch.zeros(hidden, len(INTENTS)), -torch.arange(len(INTENTS)).float()
    )
    memory.reset(RouterCalibration(WordWeights({}, 0), 1.0, space, intents, threshold=0.5))
    for first in range(0, leaves, FOLIO):
        count = min(FOLIO, leaves - first)
        drawn = torch.randn(count, hidden + VIEWS * dimensions, generator=draw)
        with tempfile.TemporaryDirectory() as folder:  # a file that is mapped may lose its name
            save_file({"drawn": drawn}, f"{folder}/folio.safetensors")
            held = load_file(f"{folder}/folio.safetensors")["drawn"]
        for number in range(first, first + count):
            row = number % len(ids)
            asked = to == "side" and number < 10 * len(ids)
            name = ids[row, 2:5] if asked else torch.randint(3, VOCABULARY, (3,), generator=draw)
            subject = lm.decode(name.tolist())
            prompt = lm.decode(ids[row].tolist()) if asked and number < len(ids) else subject
            key, views = held[number - first].split([hidden, VIEWS * dimensions])
            question = views.view(VIEWS, dimensions)
            answer = tuple(range(ROWS))
            leaf = Leaf(Edit(prompt, "w1", subject), subject, question, 0, answer, key)
            memory.leaves.add(number, leaf)
    assert len(memory.leaves.folios) == -(-leaves // FOLIO)
    return memory


MEMORIES = {"wise": side_memory, "folio": folio_memory}


@torch.no_grad()
def measure(lm: LM, kind: str, leaves: int, batch: int, to: str, tokens: int, rounds: int) -> str:
    """Time generation with a memory and without; returns a line to print."""
    draw = torch.Generator().manual_seed(1)
    shared = {id(tensor): tensor for tensor in lm.model.parameters()}
    edited = LM(copy.deepcopy(lm.model, shared), lm.tokenizer)
    ids = torch.randint(3, VOCABULARY, (batch, PROMPT), generator=draw)
    MEMORIES[kind](edited, ids, to, leaves).install(edited)
    took: dict[bool, list[list[float]]] = {True: [], False: []}
    for turn in range(rounds + 1):
        pair = {True: Generation(edited.model, ids), False: Generation(lm.model, ids)}
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for step in range(tokens):
            for which in (True, False) if (turn + step) % 2 else (False, True):
                seconds[which].append(pair[which].forward())
        if turn:  # the first round warms up
            for which, found in seconds.items():
                took[which].append(found)
    passes = {
        which: [statistics.median(found) for found in zip(*took[which], strict=True)]
        for which in took
    }
    base, whole = sum(passes[False]), sum(passes[True]) / sum(passes[False]) - 1
    later = sum(passes[True][1:]) / sum(passes[False][1:]) - 1
    return (
        f"batch {batch}, {kind}, routed to the {to} memory: {whole:+.1%} on {base:.2f} s "
        f"({later:+.1%} without the prompt's pass; {tokens} new tokens, {rounds} rounds)"
    )


def main() -> None:
    """Measure both batch sizes, routed to the memory and past it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--rounds", type=int, default=5, help="times that the text is generated by both"
    )
    parser.add_argument("--tokens", type=int, default=64, help="new tokens, at least 2")
    parser.add_argument("--memory", choices=[*MEMORIES], default="wise")
    parser.add_argument("--leaves", type=int, default=10_000, help="edits that folio holds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lm = random_model(layers=12, hidden=768, intermediate=3072, heads=12, vocabulary=VOCABULARY)
    for batch in (1, 8):
        for to in ("side", "main"):
            print(
                measure(lm, given.memory, given.leaves, batch, to, given.tokens, given.rounds),
                flush=True,
            )


if __name__ == "__main__":
    main()
