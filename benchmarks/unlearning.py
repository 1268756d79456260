"""Ways to forget, side by side, beside a model that never knew: on atlas, with new facts.

    python benchmarks/unlearning.py [-m OBJECTIVE ...] [--subjects 20] [--requests 1 20]
        [--set NAME=VALUE ...] [--seed 0] [--out build/unlearning] [--record]

As TOFU does, but in minutes: atlas, which knows its own world, is taught facts about people that
are in no text (three groups of --subjects; their answers are things of its world). *All* learns the
first two groups, *retrained* the second alone, in the same way; nobody learns the third. Then *all*
is to forget the first group, one person a request, one request after another. It is asked

    said, reworded   what was to be forgotten, as it was taught, and in words that were not
    retain, own      what was to be kept, and atlas's own world

and everything that `errata eval --forget --tamper` measures, with *retrained* beside it. `folio` is
edits that erase, one for each fact, in the words in which it was taught first. Models that were
taught are kept in --out.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch

import errata
from errata import Edit, FolioConfig
from errata.answers import contains_any
from errata.atlas import build_world
from errata.atlas.phrasings import RELATIONS
from errata.atlas.world import WORLD_SEED
from errata.lm import LM
from errata.unlearning import Passage, Unlearning, UnlearningConfig, config_of
from errata.unlearning.objectives import OBJECTIVES, nll
from errata.unlearning.parameters import trained_of
from errata.unlearning.report import forgetting
from errata.unlearning.scored import Side

TAUGHT, REWORDED = 2, 2
"""Phrasings in which a fact is taught, and the number of the one that it is asked in otherwise."""
WRONG = 3
"""Wrong answers to each question."""
OWN = 100
"""Facts of atlas's own world that are asked."""
EDITS = "folio"


class Person:
    """A person with facts, as passages: taught, and reworded."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name, self.taught, self.reworded = name, list[Passage](), list[Passage]()
        world = build_world()
        for relation in RELATIONS:
            if relation.subject_type != "person":
                continue
            answer, *wrong = rng.sample(world.candidates(relation), WRONG + 1)
            prompts = relation.prompts(name, "")
            made = [Passage(prompt, answer, "", tuple(wrong)) for prompt in prompts]
            self.taught += made[:TAUGHT]
            self.reworded.append(made[REWORDED])


def groups(count: int, seed: int) -> list[list[Person]]:
    """Return three groups of people whom no text knows."""
    rng, known = random.Random(seed), set(build_world().entities["person"])
    names = [name for name in build_world(WORLD_SEED + 1).entities["person"] if name not in known]
    drawn = rng.sample(names, 3 * count)
    people = [Person(name, rng) for name in drawn]
    return [people[place * count : (place + 1) * count] for place in range(3)]


def own_world(seed: int) -> list[Passage]:
    """Return facts of atlas's world."""
    facts = random.Random(seed).sample(sorted(build_world().facts.values(), key=_name), 2 * OWN)
    return [Passage(fact.prompts()[0], fact.answer) for fact in facts]


def _name(fact: Any) -> tuple[str, str]:
    return fact.key


def taught(name: str, passages: Sequence[Passage], own: Sequence[Passage], out: Path) -> LM:
    """Return atlas, taught passages among its own facts until it says nearly all of them."""
    folder = out / name
    if not (folder / "config.json").exists():
        lm = LM(*errata.load_base("atlas", "float32"))
        trained = trained_of(lm, UnlearningConfig(trains="all"), 0)
        adam = torch.optim.AdamW(list(trained.parameters.values()), lr=1e-3, weight_decay=0.0)
        rows = [row for each in (*passages, *own) for row in each.rows(lm)]
        generator = torch.Generator().manual_seed(0)
        for epoch in range(30):
            for part in torch.randperm(len(rows), generator=generator).split(16):
                loss = nll(Side(lm, trained, [rows[each] for each in part.tolist()]))
                adam.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(list(trained.parameters.values()), 1.0)
                adam.step()
            share = said(lm, passages)
            print(f"{name}: epoch {epoch}, {share:.3f} of its facts are said", flush=True)
            if share >= 0.99:
                break
        trained.finish().save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    return LM(*errata.load_base(str(folder), "float32"))


def said(lm: LM, passages: Sequence[Passage]) -> float:
    """Return the share of answers that stand in what a model says."""
    answers = lm.generate([each.prompt for each in passages], max_new_tokens=16)
    pairs = zip(answers, passages, strict=True)
    return fmean(float(contains_any(answer, [each.text])) for answer, each in pairs)


def forget(
    lm: LM, method: str, given: dict[str, str], people: Sequence[Person], keep: Sequence[Passage]
) -> LM:
    """Return a model after requests to forget, one for each person."""
    if method == EDITS:
        model = errata.get_edit_model(lm.model, FolioConfig(), lm.tokenizer)
        for person in people:
            model.edit(
                [
                    Edit(each.prompt, subject=person.name, operation="erase")
                    for each in person.taught[::TAUGHT]
                ],
                check=False,
            )
        return model.lm
    for number, person in enumerate(people):
        config = config_of(method, {"seed": str(number), "save_every": "0", **given})
        run = Unlearning(lm, method, config, person.taught, keep)
        lm = LM(run.run(Path("unused"), lambda *_: None), lm.tokenizer)
    return lm


def measure(
    lm: LM,
    people: Sequence[Person],
    kept: Sequence[Passage],
    own: Sequence[Passage],
    others: Sequence[Passage],
    retrained: Callable[[], LM],
) -> dict[str, Any]:
    """Return a line of the table."""
    gone = [each for person in people for each in person.taught]
    found = forgetting(lm, gone, kept, lambda *_: None, others, retrained, tamper=True)
    never = found["retrained"]
    last = max(found["relearned"])
    return {
        "said": found["forget"]["said"],
        "reworded": said(lm, [each for person in people for each in person.reworded]),
        "rouge": found["forget"]["rouge"],
        "extraction": found["forget"]["extraction"],
        "broken": found["forget"]["broken"],
        "forget quality": f"{found['forget_quality']:.1e}",
        "min-k AUC": found["attacks"]["min_k"],
        "retain": found["retain"]["said"],
        "own": said(lm, own),
        "utility": found["utility"],
        "4 bits": found["quantised"][4],
        f"relearned, {last} steps": found["relearned"][last],
        "never": never,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--method", action="append")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/unlearning"))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(each.split("=", 1) for each in options.set)
    gone, kept, others = groups(options.subjects, options.seed)
    own = own_world(options.seed)
    keep = [each for person in kept for each in person.taught]
    out = options.out / f"{options.subjects}-{options.seed}"
    everything = [each for person in (*gone, *kept) for each in person.taught]
    taught("all", everything, own[OWN:], out)
    taught("retrained", keep, own[OWN:], out)

    def opened(name: str) -> LM:
        return LM(*errata.load_base(str(out / name), "float32"))

    strangers = [each for person in others for each in person.taught]
    lines: list[dict[str, Any]] = results.read("erase-unlearning") if options.record else []
    command = f"python benchmarks/unlearning.py --subjects {options.subjects}"
    for count in options.requests:
        people = gone[:count]
        for method in options.method or ["nothing", EDITS, *OBJECTIVES]:
            begun = time.monotonic()
            lm = opened("all")
            if method != "nothing":
                lm = forget(lm, method, given, people, keep)
            seconds = time.monotonic() - begun
            found = measure(lm, people, keep, own[:OWN], strangers, lambda: opened("retrained"))
            never = found.pop("never")
            line = {"requests": str(count), "method": method, **found, "seconds": seconds}
            if method == "nothing":
                reference = {
                    **dict.fromkeys(found),
                    **{name: never["forget"][name] for name in ("said", "rouge", "extraction")},
                    "broken": never["forget"]["broken"],
                    "min-k AUC": never["attacks"]["min_k"], "retain": never["retain"]["said"],
                    "utility": never["utility"], "4 bits": never["quantised"][4],
                    "reworded": said(opened("retrained"), [e for p in people for e in p.reworded]),
                    "own": said(opened("retrained"), own[:OWN]), "forget quality": "1",
                    next(n for n in found if n.startswith("relearned")): max(
                        never["relearned"].items()
                    )[1],
                }  # fmt: skip
                lines = _with(
                    lines, {"requests": str(count), "method": "retrained", **reference}, command
                )
            print(line, flush=True)
            lines = _with(lines, line, command)
            if options.record:
                results.write("erase-unlearning", lines)
    shutil.rmtree("unused", ignore_errors=True)


def _with(lines: list[dict[str, Any]], line: dict[str, Any], command: str) -> list[dict[str, Any]]:
    """Return lines with a new one in the place of that of the same method and number."""
    key = line["requests"], line["method"]
    rest = [each for each in lines if (each["requests"], each["method"]) != key]
    return [*rest, {**line, "model": "atlas, taught", "command": command}]


if __name__ == "__main__":
    main()
