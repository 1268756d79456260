"""What it costs to take a record out of SISA's shards, and what is left of it: on atlas, new facts.

    python benchmarks/sisa.py [--records 100] [--seeds 3] [--set NAME=VALUE ...] [--out build/sisa]
        [--ways] [--record]

atlas learns facts about people that are in no text (see benchmarks/unlearning.py), a LoRA for each
shard. For each seed a fact that the merged model says is taken out, and the same is asked of

    learned     the shards, all facts learned
    taken out   the same shards, after the fact was taken out
    never       shards that never had it: the other facts, dealt anew by another seed

    steps, share   that this took, their share of those of all shards from nothing; and seconds
    its answer     whether the merged model says the fact; and the probability of a token of it
    others said    the other facts that the merged model says freely
    own world      facts of atlas's own world that the merged model says

The last line has the mean over all facts of what taking out each alone would take. `--ways` instead
merges the first seed's shards in several ways, and asks each shard and hears the surest. Folders
stay in --out; what is there is not trained again. Alone on one core a seed takes a few minutes.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D
from unlearning import groups, own_world, said

import errata
from errata.answers import contains_any
from errata.lm import LM
from errata.solvers.merging import merge
from errata.unlearning import Passage, ShardFolder, Sisa, SisaConfig, answers, merged

OWN = 50
"""Facts of atlas's own world that are asked."""
SETTINGS = {"shards": "12", "slices": "4", "batch": "10", "epochs": "20", "lr": "0.003"}
"""So that a shard has two or three records in each slice, and each turn a step an epoch."""
WAYS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "mean": lambda deltas: merge(deltas, "linear"),
    "mean x 3": lambda deltas: merge(deltas, "linear", scale=3.0),
    "sum x 0.4": lambda deltas: merge(deltas, "task_arithmetic", scale=0.4),
    "sum": lambda deltas: merge(deltas, "task_arithmetic"),
    "TIES, density 0.2": lambda deltas: merge(deltas, "ties", density=0.2),
    "TIES, density 1": lambda deltas: merge(deltas, "ties"),
}
"""Ways to merge what the LoRAs change."""


def quiet(what: str, done: int, total: int) -> None:
    pass


def facts(count: int, seed: int) -> list[Passage]:
    """Return new facts about people, each in one wording."""
    people = groups(20, seed)[0] + groups(20, seed)[1]
    drawn = [passage for person in people for passage in person.taught[::2]]
    return random.Random(seed).sample(drawn, count)


def atlas() -> LM:
    return LM(*errata.load_base("atlas", "float32"))


def learned(path: Path, passages: Sequence[Passage], config: SisaConfig) -> Sisa:
    """Return shards that have learned passages."""
    sisa = Sisa.begin(atlas(), path, passages, config)
    cost = sisa.train(quiet)
    print(f"{path}: {cost.steps} steps, {cost.seconds:.0f} s", flush=True)
    return sisa


def one_model(sisa: Sisa) -> LM:
    """Return atlas with a folder's shards merged into it."""
    return LM(merged(Sisa(atlas(), sisa.folder), quiet), sisa.lm.tokenizer)


def told(lm: LM, passages: Sequence[Passage]) -> list[Passage]:
    """Return the passages that a model says."""
    texts = lm.generate([each.prompt for each in passages], max_new_tokens=16)
    pairs = zip(passages, texts, strict=True)
    return [each for each, text in pairs if contains_any(text, [each.text])]


def of_seed(seed: int, count: int, config: SisaConfig, out: Path) -> list[dict[str, Any]]:
    """Return the lines of a seed."""
    passages, own, rng = facts(count, seed), own_world(seed)[:OWN], random.Random(seed)
    lines: list[dict[str, Any]] = []

    def add(shards: str, lm: LM, known: Sequence[Passage], cost: Mapping[str, Any]) -> None:
        (score,) = lm.score([(gone.prompt, gone.text)])
        found = {
            "its answer": str(gone in known),
            "probability": math.exp(-score.loss),
            "others said": sum(each != gone for each in known) / (count - 1),
            "own world": said(lm, own),
        }
        lines.append({"seed": seed, "shards": shards, **cost, **found})
        print(lines[-1], flush=True)

    sisa = learned(out / f"all-{seed}", passages, config)
    steps = sum(map(sisa.steps, range(config.shards)))
    lm = one_model(sisa)
    known = told(lm, passages)
    gone = rng.choice(known)
    add("learned", lm, known, {"steps": steps, "share": 1.0, "seconds": None})
    path = out / f"out-{seed}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sisa.folder.path, path)
    less = Sisa(sisa.lm, ShardFolder.open(path))
    cost = less.forget([gone], quiet)
    spent = {"steps": cost.steps, "share": cost.steps / cost.steps_of_all, "seconds": cost.seconds}
    lm = one_model(less)
    add("taken out", lm, told(lm, passages), spent)
    other = SisaConfig.from_dict({**config.to_dict(), "seed": 1000 + seed})
    never = one_model(learned(out / f"never-{seed}", [e for e in passages if e != gone], other))
    add("never", never, told(never, passages), {})
    return lines


def mean_cost(folder: ShardFolder, sisa: Sisa) -> float:
    """Return the mean share of steps over all records, each taken out alone."""
    everything = sum(map(sisa.steps, range(sisa.config.shards)))
    return fmean(sisa.steps(each.shard, each.slice) for each in folder.records) / everything


@torch.no_grad()
def ways(sisa: Sisa, passages: Sequence[Passage], own: Sequence[Passage]) -> list[dict[str, Any]]:
    """Return what models that are merged in several ways say."""
    changes: list[dict[str, Tensor]] = []
    for shard in range(sisa.config.shards):
        with sisa.lora(shard) as lora:
            changes.append(lora.changes())
    lines = []
    for name, way in WAYS.items():
        lm = LM(copy.deepcopy(sisa.lm.model), sisa.lm.tokenizer)
        for matrix in changes[0]:
            change, module = way([each[matrix] for each in changes]), lm.model.get_submodule(matrix)
            module.weight += change.T if isinstance(module, Conv1D) else change
        lines.append({"way": name, "said": said(lm, passages), "own world": said(lm, own)})
        print(lines[-1], flush=True)
    for ridge, scale in ((0.001, 1.0), (0.01, 1.0), (0.01, 1.5), (0.01, 2.0), (0.1, 2.0)):
        lm = LM(merged(Sisa(atlas(), sisa.folder), quiet, ridge, scale), sisa.lm.tokenizer)
        name = f"RegMean x {scale:g}, ridge {ridge:g}"
        lines.append({"way": name, "said": said(lm, passages), "own world": said(lm, own)})
        print(lines[-1], flush=True)
    found = answers(sisa, [each.prompt for each in passages], quiet, tokens=16)
    heard = [contains_any(a.text, [p.text]) for a, p in zip(found, passages, strict=True)]
    lines.append({"way": "the surest shard answers", "said": fmean(heard)})
    print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("build/sisa"))
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = SisaConfig.from_dict({**SETTINGS, **dict(e.split("=", 1) for e in options.set)})
    name = "erase-sisa-ways" if options.ways else "erase-sisa"
    command = f"python benchmarks/sisa.py --records {options.records}"
    command += " --ways" if options.ways else f" --seeds {options.seeds}"
    command += "".join(f" --set {each}" for each in options.set)

    def keep(lines: Sequence[dict[str, Any]]) -> None:
        if options.record:
            results.write(name, [{**line, "model": "atlas", "command": command} for line in lines])

    if options.ways:
        passages = facts(options.records, 0)
        sisa = learned(options.out / "all-0", passages, config)
        keep(ways(sisa, passages, own_world(0)[:OWN]))
        return
    lines: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        lines += of_seed(seed, options.records, config, options.out)
        keep(lines)
    folder = ShardFolder.open(options.out / "all-0")
    lines.append({"shards": "any one", "share": mean_cost(folder, Sisa(atlas(), folder))})
    print(lines[-1], flush=True)
    keep(lines)


if __name__ == "__main__":
    main()
