"""Ways to forget, side by side, beside a model that never knew: on atlas, with new facts, or TOFU.

    python benchmarks/unlearning.py [-m OBJECTIVE ...] [--requests 1 20] [--set NAME=VALUE ...]
        [--subjects 20] [--tofu FOLDER --model MODEL] [--device cpu] [--seed 0]
        [--out build/unlearning] [--record]

As TOFU does, but in minutes: atlas, which knows its own world, is taught facts about people that
are in no text (three groups of --subjects; their answers are things of its world). *All* learns the
first two groups, *retrained* the second alone, in the same way; nobody learns the third. Then *all*
is to forget the first group, one person a request, one request after another. It is asked

    said, reworded   what was to be forgotten, as it was taught, and in words that were not
    retain, own      what was to be kept, and atlas's own world

and everything that `errata eval --forget --tamper` measures, with *retrained* beside it. `folio` is
edits that erase, one for each fact, in the words in which it was taught first. Models that were
taught are kept in --out.

With --tofu it is TOFU itself, on a pretrained model: *all* is taught forget05 (those of forget01
first, ten questions a request) and the first half of retain_perturbed_400, *retrained* that half
alone, and nobody the other half; `own` are the real authors. Nothing there is reworded. It wants a
GPU (--device cuda).
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from errata.unlearning.passages import read_passages
from errata.unlearning.report import forgetting
from errata.unlearning.scored import Side

TAUGHT, REWORDED = 2, 2
"""Phrasings in which a fact is taught, and the number of the one that it is asked in otherwise."""
WRONG = 3
"""Wrong answers to each question."""
OWN = 100
"""Facts of atlas's own world that are asked."""
TOKENS = 16
"""Of a free answer of atlas."""
QUESTIONS = 10
"""Of TOFU in a request."""
EDITS, NOTHING = "folio", "nothing"


@dataclass
class Request:
    """What is to be forgotten at once: as it was taught, and reworded.

    Attributes:
        subject: whom it is about; empty where that is several people.
        erased: the passages that an edit is written for.
    """

    subject: str
    taught: list[Passage]
    reworded: list[Passage]
    erased: list[Passage]


@dataclass
class Material:
    """What a model is taught and asked.

    Attributes:
        model: what is taught.
        gone: requests to forget, in order.
        kept: what is taught, too, and kept.
        others: passages of the same kind that nobody is taught.
        among: what the model knows and is taught among the others, so that it is not lost.
        own: what else it knows and is asked.
        batch, rate: of the teaching.
        tokens: of a free answer.
    """

    model: str
    gone: list[Request]
    kept: list[Passage]
    others: list[Passage]
    among: list[Passage]
    own: list[Passage]
    batch: int
    rate: float
    tokens: int


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
    facts = random.Random(seed).sample(sorted(build_world().facts.values(), key=_name), 5 * OWN)
    return [Passage(fact.prompts()[0], fact.answer) for fact in facts]


def _name(fact: Any) -> tuple[str, str]:
    return fact.key


def of_atlas(count: int, seed: int) -> Material:
    gone, kept, others = groups(count, seed)
    own = own_world(seed)
    return Material(
        "atlas",
        [Request(each.name, each.taught, each.reworded, each.taught[::TAUGHT]) for each in gone],
        [each for person in kept for each in person.taught],
        [each for person in others for each in person.taught],
        own[OWN:],
        own[:OWN],
        batch=16,
        rate=3e-4,
        tokens=TOKENS,
    )


def of_tofu(folder: Path, model: str) -> Material:
    first, all_, retain, real = (
        read_passages(folder / f"{name}.json")
        for name in (
            "forget01_perturbed", "forget05", "retain_perturbed_400", "real_authors_perturbed"
        )
    )  # fmt: skip
    begun = {each.prompt for each in first}
    gone = [*first, *(each for each in all_ if each.prompt not in begun)]
    requests = [gone[place : place + QUESTIONS] for place in range(0, len(gone), QUESTIONS)]
    half = len(retain) // 2
    return Material(
        model,
        [Request("", each, [], each) for each in requests],
        retain[:half],
        retain[half:],
        [],
        real,
        batch=16,
        rate=5e-5,
        tokens=64,
    )


def opened(model: str, device: str) -> LM:
    return LM(*errata.load_base(model, "float32", device))


def taught(name: str, passages: Sequence[Passage], what: Material, out: Path, device: str) -> None:
    """Write a model that was taught passages until it says nearly all of them, if none is there."""
    folder = out / name
    if (folder / "config.json").exists():
        return
    lm = opened(what.model, device)
    trained = trained_of(lm, UnlearningConfig(trains="all"), 0)
    parameters = list(trained.parameters.values())
    adam = torch.optim.AdamW(parameters, lr=what.rate, weight_decay=0.0)
    rows = [row for each in (*passages, *what.among) for row in each.rows(lm)]
    generator = torch.Generator().manual_seed(0)
    for epoch in range(30):
        for part in torch.randperm(len(rows), generator=generator).split(what.batch):
            loss = nll(Side(lm, trained, [rows[each] for each in part.tolist()]))
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            adam.step()
        share = said(lm, passages, what.tokens)
        print(f"{name}: epoch {epoch}, {share:.3f} of its facts are said", flush=True)
        if share >= 0.99:
            break
    trained.finish().save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def said(lm: LM, passages: Sequence[Passage], tokens: int = TOKENS) -> float | None:
    """Return the share of answers that stand in what a model says; None where none is asked."""
    if not passages:
        return None
    answers = lm.generate([each.prompt for each in passages], max_new_tokens=tokens)
    pairs = zip(answers, passages, strict=True)
    return fmean(float(contains_any(answer, [each.text])) for answer, each in pairs)


def forget(
    lm: LM,
    method: str,
    given: dict[str, str],
    requests: Sequence[Request],
    keep: Sequence[Passage],
) -> LM:
    """Return a model after requests to forget, one after another."""
    if method == EDITS:
        model = errata.get_edit_model(lm.model, FolioConfig(), lm.tokenizer)
        for each in requests:
            edits = [
                Edit(passage.prompt, subject=each.subject, operation="erase")
                for passage in each.erased
            ]
            model.edit(edits, check=False)
        return model.lm
    for number, each in enumerate(requests):
        config = config_of(method, {"seed": str(number), "save_every": "0", **given})
        run = Unlearning(lm, method, config, each.taught, keep)
        lm = LM(run.run(Path("unused"), lambda *_: None), lm.tokenizer)
    return lm


def measure(
    lm: LM, requests: Sequence[Request], what: Material, retrained: Callable[[], LM]
) -> dict[str, Any]:
    """Return a line of the table, and what the model has that never knew as `never`."""
    gone = [each for request in requests for each in request.taught]
    reworded = [each for request in requests for each in request.reworded]
    found = forgetting(lm, gone, what.kept, lambda *_: None, what.others, retrained, tamper=True)
    never, last = found["retrained"], max(found["relearned"])

    def line(one: dict[str, Any], asked: LM) -> dict[str, Any]:
        return {
            "said": one["forget"]["said"],
            "reworded": said(asked, reworded, what.tokens),
            "rouge": one["forget"]["rouge"],
            "extraction": one["forget"]["extraction"],
            "broken": one["forget"]["broken"],
            "forget quality": None,
            "min-k AUC": one["attacks"]["min_k"],
            "retain": one["retain"]["said"],
            "own": said(asked, what.own, what.tokens),
            "utility": one["utility"],
            "4 bits": one["quantised"][4],
            f"relearned, {last} steps": one["relearned"][last],
        }

    return {
        **line(found, lm),
        "forget quality": f"{found['forget_quality']:.1e}",
        "never": {**line(never, retrained()), "forget quality": "1"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--method", action="append")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--tofu", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/unlearning"))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(each.split("=", 1) for each in options.set)
    command = "python benchmarks/unlearning.py" + "".join(f" --set {each}" for each in options.set)
    if options.tofu:
        what, named = of_tofu(options.tofu, options.model), Path(options.model).name
        out, command = options.out / named, f"{command} --tofu FOLDER --model {named}"
    else:
        what, named = of_atlas(options.subjects, options.seed), "atlas"
        out = options.out / f"{options.subjects}-{options.seed}"
        command += f" --subjects {options.subjects}"
    gone = [each for request in what.gone for each in request.taught]
    taught("all", [*gone, *what.kept], what, out, options.device)
    taught("retrained", what.kept, what, out, options.device)
    name = "erase-tofu" if options.tofu else "erase-unlearning"
    lines: list[dict[str, Any]] = results.read(name) if options.record else []
    for count in options.requests:
        for method in options.method or [NOTHING, EDITS, *OBJECTIVES]:
            lm, begun = opened(str(out / "all"), options.device), time.monotonic()
            if method != NOTHING:
                lm = forget(lm, method, given, what.gone[:count], what.kept)
            seconds = time.monotonic() - begun
            found = measure(
                lm, what.gone[:count], what, lambda: opened(str(out / "retrained"), options.device)
            )
            never = {"requests": str(count), "method": "retrained", **found.pop("never")}
            line = {"requests": str(count), "method": method, **found, "seconds": seconds}
            print(line, flush=True)
            for each in [never, line] if method == NOTHING else [line]:
                lines = _with(lines, {**each, "model": f"{named}, taught", "command": command})
            if options.record:
                results.write(name, lines)
    shutil.rmtree("unused", ignore_errors=True)


def _with(lines: list[dict[str, Any]], line: dict[str, Any]) -> list[dict[str, Any]]:
    """Return lines with a new one in the place of that of the same method and number."""
    key = line["requests"], line["method"]
    rest = [each for each in lines if (each["requests"], each["method"]) != key]
    return [*rest, line]


if __name__ == "__main__":
    main()
