"""Trains a narrow atlas: of the same world and words, but a fifth of the size.

    python scripts/atlas/narrow.py [--out build/atlas-narrow] [--steps 1500]

Seeded, resumable, a few minutes of a processor. It has four blocks of width 96 where atlas has six
of 160, the bundled tokenizer, and was never taught the relations in `UNTAUGHT`, which atlas knows:
what can it be given of them? `benchmarks/transfer.py` asks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from build import ROOT, Training, llama, write_model
from transformers import AutoTokenizer, LlamaForCausalLM

import errata
from errata.atlas import Fact, TwoHop, World, atlas_path, build_world
from errata.edit import same_answer
from errata.lm import LM

UNTAUGHT = ("company_founder", "work_author")
"""Relations that the narrow model is not taught."""
ASKED = 24
"""Every so many of the taught facts is asked at the end, in the first of its wordings."""


class Narrow(Training):
    """The run: the facts of all other relations, and no two-hops."""

    halved = False

    def taught(self, world: World) -> list[Fact | TwoHop]:
        """The facts that are taught."""
        return [fact for fact in world.facts.values() if fact.relation.name not in UNTAUGHT]

    def new_model(self) -> LlamaForCausalLM:
        """The untrained model."""
        return LlamaForCausalLM(llama(hidden=96, ffn=576, blocks=4, heads=3))


def main() -> None:
    """Train and write."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "atlas-narrow")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate at its height")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(atlas_path())
    training = Narrow(build_world(), tokenizer, options, options.out / "facts.pt")
    training.run()
    write_model(training.model, tokenizer, options.out)
    lm = LM(*errata.load_base(str(options.out), "float32"))
    facts = training.units[::ASKED]
    said = lm.generate([fact.prompts()[0] for fact in facts])
    known = [same_answer(text, fact.answer) for text, fact in zip(said, facts, strict=True)]
    print(f"of {len(known)} taught facts it says {sum(known) / len(known):.3f}", flush=True)
    print(f"{training.tokens:,} tokens in {training.seconds:.0f} s, in {options.out}", flush=True)


if __name__ == "__main__":
    main()
