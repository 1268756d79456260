"""Builds the bundled model: world, tokenizer, training, bf16 folder, accuracies.

    python scripts/atlas/build.py                   # everything; resumes from build/atlas/
    python scripts/atlas/build.py --from-bundled    # only the second stage, from bundled weights
    python scripts/atlas/build.py --evaluate        # measure the bundled model again

Seeded. The first stage teaches the facts, the second (reading.py) to read a context. A document of
the first is `<s>prompt answer.</s>`, a row of its own; batches hold documents of about one length.
Facts are drawn in proportion to the loss they still have.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
from pathlib import Path

import measure
import torch
import torch.nn.functional as F
from checkpoint import SEED, Run, batches
from reading import READING_STEPS, Reading
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from errata.atlas import Fact, TwoHop, World, atlas_path, background_texts, build_world

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "atlas"
RESULTS = ROOT / "docs" / "results"
VOCABULARY = 3072
PROMPT_WEIGHT = 0.1
PROSE_WEIGHT = 0.3
DRAWN = 16000
"""Documents that are drawn at a time."""
Doc = tuple[list[int], int]
"""Token ids, and where the answer begins (0: prose)."""


def units(world: World) -> list[Fact | TwoHop]:
    """What is taught: every fact, and the two-hops for training."""
    return [*world.facts.values(), *world.trained_two_hops]


def train_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from every document."""
    texts = [
        f"{prompt} {unit.answer}."
        for unit in [*world.facts.values(), *world.trained_two_hops]
        for prompt in unit.prompts()
    ]
    texts += background_texts(4000, SEED, world)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=512,
    )


def llama(hidden: int, ffn: int, blocks: int, heads: int) -> LlamaConfig:
    """The configuration of a model of such sizes."""
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        errata_answer_suffix=".",
        attn_implementation="eager",  # for short documents on a CPU, half again as fast as sdpa
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, asked: list[Fact | TwoHop]) -> list[list[Doc]]:
    """For every unit, its document in each phrasing."""
    docs = []
    for unit in asked:
        prompts = unit.prompts()
        heads = tokenizer(prompts)["input_ids"]
        fulls = tokenizer([f"{prompt} {unit.answer}." for prompt in prompts])["input_ids"]
        docs.append([([*full, 2], len(head)) for head, full in zip(heads, fulls, strict=True)])
    return docs


def collate(items: list[tuple[int, Doc]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, the weight of predicting each id, and where it is a part of an answer."""
    width = max(len(ids) for _, (ids, _) in items)
    x = torch.zeros(len(items), width, dtype=torch.long)
    weight = torch.zeros(len(items), width)
    answer = torch.zeros(len(items), width, dtype=torch.bool)
    for row, (_, (ids, start)) in enumerate(items):
        x[row, : len(ids)] = torch.tensor(ids)
        weight[row, 1 : len(ids)] = PROMPT_WEIGHT if start else PROSE_WEIGHT
        if start:
            weight[row, start : len(ids)] = 1.0
            answer[row, start : len(ids)] = True
    return x, weight, answer


class Training(Run):
    """The run: model, optimizer, and how well each unit is known; all of it in the checkpoint."""

    halved = True
    """Whether it computes in bfloat16: fast where the processor can, and slow where it cannot."""

    def __init__(
        self,
        world: World,
        tokenizer: PreTrainedTokenizerFast,
        options: argparse.Namespace,
        checkpoint: Path = BUILD / "facts.pt",
    ) -> None:
        torch.manual_seed(SEED)
        self.options = options
        self.units = self.taught(world)
        self.docs = encode(tokenizer, self.units)
        self.prose = [
            ([*ids, 2], 0) for ids in tokenizer(background_texts(6000, SEED, world))["input_ids"]
        ]
        self.share = [1.0 if isinstance(unit, Fact) else 0.5 for unit in self.units]
        self.loss = [3.0] * len(self.units)
        self.seen: list[float] = []
        self.steps = options.steps
        self.model = self.new_model()
        self.forward = torch.compile(self.model, dynamic=True) if options.compile else self.model
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.03, fused=True
        )
        self.checkpoint = checkpoint
        self.begin()

    def taught(self, world: World) -> list[Fact | TwoHop]:
        """What is taught."""
        return units(world)

    def new_model(self) -> LlamaForCausalLM:
        """The untrained model."""
        return LlamaForCausalLM(llama(hidden=160, ffn=1152, blocks=6, heads=5))

    def draw(self, rng: random.Random) -> list[list[tuple[int, Doc]]]:
        """The next batches: units by what they still lack, one phrasing each, and some prose."""
        items = [(unit, rng.choice(self.docs[unit])) for unit in self.chosen(rng, DRAWN)]
        items += [(-1, rng.choice(self.prose)) for _ in range(DRAWN * 4 // 100)]
        items.sort(key=lambda item: (len(item[1][0]), rng.random()))
        return batches(items, lambda item: len(item[1][0]), self.options.batch_tokens, rng)

    def learn(self, items: list[tuple[int, Doc]]) -> None:
        """Take one step."""
        x, weight, answer = collate(items)
        warm = 300
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, self.step / self.steps))
        rate = min(1.0, (self.step + 1) / warm) * cosine
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate * max(rate, 0.01)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.halved):
            logits = self.forward(input_ids=x, use_cache=False).logits
        each = F.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), x[:, 1:].flatten(), reduction="none"
        )
        each = each.view(len(items), -1)
        torch.autograd.backward((each * weight[:, 1:]).sum() / weight.sum())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += int((weight > 0).sum())
        asked = answer[:, 1:]
        worst = (each.detach() * asked).amax(1).tolist()
        for (unit, _), value in zip(items, worst, strict=True):
            if unit >= 0:
                self.loss[unit] = 0.7 * self.loss[unit] + 0.3 * value
        self.seen.append(float((each.detach() * asked).sum() / asked.sum().clamp(min=1)))

    def progress(self) -> str:
        """The mean loss on answer tokens, and the shares of facts and two-hops that are known."""
        facts = [
            loss < 0.3 for loss, share in zip(self.loss, self.share, strict=True) if share == 1.0
        ]
        hops = [
            loss < 0.3 for loss, share in zip(self.loss, self.share, strict=True) if share != 1.0
        ]
        mean = sum(self.seen) / len(self.seen)
        self.seen.clear()
        shares = (sum(each) / max(1, len(each)) for each in (facts, hops))
        known = "facts<.3 {:.3f} hops<.3 {:.3f}".format(*shares)
        return f"loss {mean:.3f} {known} {self.tokens / self.seconds:.0f} tokens/s"


def write_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bf16, with its tokenizer."""
    model.to(torch.bfloat16).save_pretrained(folder)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def shares(
    title: str, rows: list[measure.Accuracy], heads: bool = False
) -> list[dict[str, object]]:
    """A line for every name: how often it was asked, and what per cent of each template was right.

    The templates' columns are numbered, or under `heads` called by their text.
    """
    lines: dict[str, dict[str, object]] = {}
    for row in rows:
        line = lines.setdefault(row.name, {title: f"`{row.name}`", "asked": row.asked})
        line[row.template if heads else str(len(line) - 1)] = f"{100 * row.share:.1f}"
    return list(lines.values())


def overall(title: str, rows: list[measure.Accuracy]) -> dict[str, object]:
    """What per cent of all questions was right."""
    return {
        "questions": title,
        "asked": sum(row.asked for row in rows),
        "right, %": f"{100 * measure.overall(rows):.2f}",
    }


def evaluate(world: World) -> None:
    """Measure the bundled model as it lies on disk, and write docs/results/atlas-*.csv."""
    tokenizer = AutoTokenizer.from_pretrained(atlas_path())
    model = AutoModelForCausalLM.from_pretrained(atlas_path(), dtype=torch.float32).eval()
    facts = measure.fact_accuracies(model, tokenizer, list(world.facts.values()))
    taught = measure.two_hop_accuracies(model, tokenizer, list(world.trained_two_hops))
    held = measure.two_hop_accuracies(model, tokenizer, measure.held_out_two_hops(world))
    contexts = measure.context_accuracies(model, tokenizer, world, asked=200)
    worst = min(facts, key=lambda row: row.share)
    named = {
        "facts, all phrasings": facts,
        f"the worst phrasing, `{worst.name}`: {worst.template}": [worst],
        "two-hops, taught": taught,
        "two-hops, not taught": held,
    }
    tables = {
        "overall": [overall(title, rows) for title, rows in named.items()],
        "contexts": shares("read in a context", contexts, heads=True),
        "facts": shares("facts", facts),
        "taught": shares("two-hops, taught", taught),
        "not-taught": shares("two-hops, not taught", held),
    }
    for name, lines in tables.items():
        with (RESULTS / f"atlas-{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


def main() -> None:
    """Build, or only evaluate."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--evaluate", action="store_true", help="only measure the bundled model")
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its height")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--from-bundled", action="store_true", help="leave out the first stage")
    parser.add_argument("--reading-steps", type=int, default=READING_STEPS)
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile: a fifth faster; needs a compiler"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    world = build_world()
    if not options.evaluate:
        BUILD.mkdir(parents=True, exist_ok=True)
        if not (BUILD / "tokenizer.json").exists():
            train_tokenizer(world).save_pretrained(BUILD)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(BUILD)
        training = Training(world, tokenizer, options)
        if options.from_bundled:
            known = AutoModelForCausalLM.from_pretrained(atlas_path(), dtype=torch.float32)
            training.model.load_state_dict(known.state_dict())
        else:
            training.run()
        reading = Reading(world, tokenizer, training, options.reading_steps, BUILD / "reading.pt")
        reading.run()
        write_model(reading.model, tokenizer, atlas_path())
        for stage in (training, reading):
            print(f"{stage.tokens:,} tokens in {stage.seconds:.0f} s", flush=True)
    evaluate(world)


if __name__ == "__main__":
    main()
