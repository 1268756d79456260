"""What it costs to take a record out of SISA's shards, and what is left of it: on atlas, new facts.

    python benchmarks/sisa.py [--records 100] [--seeds 3] [--set NAME=VALUE ...] [--out build/sisa]
        [--ways] [--record]

atlas learns facts about people that are in no text (see benchmarks/unlearning.py), a LoRA for each
shard. For each seed a fact that the merged model says is taken out, and the same is asked of

    learned     the shards, all facts learned
    taken out   the same shards, after the fact was taken out
    never       shards that never had it: the other facts, dealt anew by another seed

    steps, share   that the last change took, and their share of those of all shards from nothing
    its answer     whether the merged model says the fact; and the probability of a token of it
    others said    the other facts that the merged model says freely
    by the surest  the same, by the shard that is surest of its answer (asked of `ASKED` of them)
    own world      facts of atlas's own world that the merged model says

The last line has the mean over all facts of what taking out each alone would take. `--ways` instead
merges the first seed's shards in several ways. Folders stay in --out; what is there is not trained
again, and then says nothing about seconds.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import shutil
from collections.abc import Callable, Sequence
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

ASKED = 50
"""Facts that all shards are asked, and facts of atlas's own world that the merged model is."""
SETTINGS = {"shards": "12", "slices": "4", "batch": "10"}
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


def measured(sisa: Sisa, gone: Passage | None, kept: Sequence[Passage], own: Any) -> dict[str, Any]:
    """Return what a folder's shards say."""
    asked = kept[:ASKED]
    surest = answers(sisa, [each.prompt for each in asked], quiet, tokens=16)
    heard = [contains_any(a.text, [p.text]) for a, p in zip(surest, asked, strict=True)]
    lm = LM(merged(Sisa(atlas(), sisa.folder), quiet), sisa.lm.tokenizer)
    found: dict[str, Any] = {}
    if gone is not None:
        (score,) = lm.score([(gone.prompt, gone.text)])
        found = {"its answer": bool(said(lm, [gone])), "probability": math.exp(-score.loss)}
    return {
        **found,
        "others said": said(lm, kept),
        "by the surest": fmean(heard),
        "own world": said(lm, own),
    }


def told(lm: LM, passages: Sequence[Passage]) -> list[Passage]:
    """Return the passages that a model says."""
    texts = lm.generate([each.prompt for each in passages], max_new_tokens=16)
    pairs = zip(passages, texts, strict=True)
    return [each for each, text in pairs if contains_any(text, [each.text])]


def of_seed(seed: int, count: int, config: SisaConfig, out: Path) -> list[dict[str, Any]]:
    """Return the lines of a seed."""
    passages, own = facts(count, seed), own_world(seed)[:ASKED]
    sisa = learned(out / f"all-{seed}", passages, config)
    known = told(LM(merged(Sisa(atlas(), sisa.folder), quiet), sisa.lm.tokenizer), passages)
    gone = random.Random(seed).choice(known)
    kept = [each for each in passages if each != gone]
    steps = sum(map(sisa.steps, range(config.shards)))
    lines = [{"seed": seed, "shards": "learned", "steps": steps, "share": 1.0}]
    lines[0] |= measured(sisa, gone, kept, own)
    print(lines[0], flush=True)
    path = out / f"out-{seed}"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sisa.folder.path, path)
    less = Sisa(sisa.lm, ShardFolder.open(path))
    cost = less.forget([gone], quiet)
    share = cost.steps / cost.steps_of_all
    lines.append({"seed": seed, "shards": "taken out", "steps": cost.steps, "share": share})
    lines[1] |= {"seconds": cost.seconds, "seconds of all": cost.seconds_of_all}
    lines[1] |= measured(less, gone, kept, own)
    print(lines[1], flush=True)
    other = SisaConfig.from_dict({**config.to_dict(), "seed": 1000 + seed})
    never = learned(out / f"never-{seed}", kept, other)
    lines.append({"seed": seed, "shards": "never", **measured(never, gone, kept, own)})
    print(lines[2], flush=True)
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
    command = f"python benchmarks/sisa.py --records {options.records}"
    if options.ways:
        passages = facts(options.records, 0)
        sisa = learned(options.out / "all-0", passages, config)
        name, lines = "sisa-ways", ways(sisa, passages, own_world(0)[:ASKED])
        command += " --ways"
    else:
        lines = []
        for seed in range(options.seeds):
            lines += of_seed(seed, options.records, config, options.out)
        folder = ShardFolder.open(options.out / "all-0")
        lines.append({"shards": "any one", "share": mean_cost(folder, Sisa(atlas(), folder))})
        print(lines[-1], flush=True)
        name, command = "sisa", f"{command} --seeds {options.seeds}"
    if options.record:
        results.write(name, [{**line, "model": "atlas", "command": command} for line in lines])


if __name__ == "__main__":
    main()
