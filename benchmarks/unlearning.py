"""Ways to forget, side by side, beside a model that never knew: on atlas, with new facts, or TOFU.

    python benchmarks/unlearning.py [-m OBJECTIVE ...] [--requests 1 20] [--set NAME=VALUE ...]
        [--subjects 20] [--tofu FOLDER --model MODEL [--questions 10] [--kept 200]]
        [--device cpu] [--seed 0] [--out build/unlearning] [--record]

As TOFU does, but in minutes: atlas, which knows its own world, is taught facts about people that
are in no text (three groups of --subjects; their answers are things of its world). *All* learns the
first two groups, *retrained* the second alone, in the same way; nobody learns the third. Then *all*
is to forget the first group, one person a request, one request after another. It is asked

    said, reworded   what was to be forgotten, as it was taught, and in words that were not
    retain, own      what was to be kept, and atlas's own world

and everything that `errata eval --forget --tamper` measures, with *retrained* beside it. `folio` is
edits that erase, one for each fact, in the words in which it was taught first. Models that were
taught are kept in --out.

With --tofu it is TOFU itself, on a pretrained model: *all* is taught --subjects requests, each of
--questions of forget05 (those of forget01 first), and the first --kept of retain_perturbed_400,
*retrained* these alone, and nobody as many behind them; `own` are the real authors. Nothing there
is reworded. All of forget05 wants a GPU (--device cuda); one question a request, twenty that are
kept and --own 16 take half an hour of a core to teach, and ten minutes for each way.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from errata.unlearning.report import Known, forgetting, known
from errata.unlearning.scored import Side
from errata.unlearning.tampering import STEPS

TAUGHT, REWORDED = 2, 2
"""Phrasings in which a fact is taught, and the number of the one that it is asked in otherwise."""
WRONG = 3
"""Wrong answers to each question."""
OWN = 100
"""Facts of atlas's own world that are asked."""
TOKENS = 16
"""Of a free answer of atlas."""
KNOWN = 0.3
"""Nats a token, above which a model that is taught is not asked yet."""
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
        enough: the share of the answers that is said, at which the teaching ends.
        steps: with which it is tried to bring back what was forgotten.
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
    enough: float = 0.99
    steps: Sequence[int] = STEPS


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


def of_tofu(folder: Path, model: str, count: int, questions: int, kept: int, own: int) -> Material:
    first, all_, retain, real = (
        [replace(each, wrong=each.wrong[:WRONG]) for each in read_passages(folder / f"{name}.json")]
        for name in (
            "forget01_perturbed", "forget05", "retain_perturbed_400", "real_authors_perturbed"
        )
    )  # fmt: skip
    begun = {each.prompt for each in first}
    gone = [*first, *(each for each in all_ if each.prompt not in begun)]
    starts = range(0, min(len(gone), count * questions), questions)
    requests = [gone[start : start + questions] for start in starts]
    return Material(
        model,
        [Request("", each, [], each) for each in requests],
        retain[:kept],
        retain[kept : 2 * kept],
        [],
        real[:own],
        batch=4,
        rate=2e-4,
        tokens=128,
        enough=0.95,
        steps=(0, 5),
    )


def opened(model: str, device: str) -> LM:
    return LM(*errata.load_base(model, "float32", device))


def taught(name: str, passages: Sequence[Passage], what: Material, out: Path, device: str) -> None:
    """Write a model that was taught passages until it says enough of them, if none is there."""
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
        if loss.item() > KNOWN:
            print(f"{name}: epoch {epoch}, {loss.item():.2f} nats a token", flush=True)
            continue
        share = said(lm, passages, what.tokens)
        print(f"{name}: epoch {epoch}, {share:.3f} of its facts are said", flush=True)
        if share >= what.enough:
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
                Edit(passage.prompt, subject=each.subject or None, operation="erase")
                for passage in each.erased
            ]
            model.edit(edits, check=False)
        return model.lm
    for number, each in enumerate(requests):
        config = config_of(method, {"seed": str(number), "save_every": "0", **given})
        run = Unlearning(lm, method, config, each.taught, keep)
        lm = LM(run.run(Path("unused"), lambda *_: None), lm.tokenizer)
    return lm


def asked(lm: LM, requests: Sequence[Request], what: Material) -> tuple[Known, dict[str, Any]]:
    """Return what a model knows, and the columns that `errata eval` does not have."""
    gone = [each for request in requests for each in request.taught]
    reworded = [each for request in requests for each in request.reworded]
    found = known(lm, gone, what.kept, lambda *_: None, what.others, True, what.steps)
    shares = {
        "reworded": said(lm, reworded, what.tokens), "own": said(lm, what.own, what.tokens)
    }  # fmt: skip
    return found, shares


def line(found: dict[str, Any], shares: dict[str, Any], quality: str, steps: int) -> dict[str, Any]:
    """Return a line of the table."""
    return {
        "said": found["forget"]["said"],
        "reworded": shares["reworded"],
        "rouge": found["forget"]["rouge"],
        "extraction": found["forget"]["extraction"],
        "broken": found["forget"]["broken"],
        "forget quality": quality,
        "min-k AUC": found["attacks"]["min_k"],
        "retain": found["retain"]["said"],
        "own": shares["own"],
        "utility": found["utility"],
        "4 bits": found["quantised"][4],
        f"relearned, {steps} steps": found.get("relearned", {}).get(steps),
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
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--kept", type=int, default=200)
    parser.add_argument("--own", type=int, default=100)
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/unlearning"))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(each.split("=", 1) for each in options.set)
    command = "python benchmarks/unlearning.py" + "".join(f" --set {each}" for each in options.set)
    command += f" --subjects {options.subjects}"
    if options.tofu:
        sizes = options.questions, options.kept, options.own
        what = of_tofu(options.tofu, options.model, options.subjects, *sizes)
        named = Path(options.model).name
        out = options.out / f"{named}-{options.subjects}-{options.questions}-{options.kept}"
        command += f" --tofu FOLDER --model {named}" + "".join(
            f" --{name} {size}"
            for name, size in zip(("questions", "kept", "own"), sizes, strict=True)
        )
    else:
        what, named = of_atlas(options.subjects, options.seed), "atlas"
        out = options.out / f"{options.subjects}-{options.seed}"
    gone = [each for request in what.gone for each in request.taught]
    taught("all", [*gone, *what.kept], what, out, options.device)
    taught("retrained", what.kept, what, out, options.device)
    provenance = {"model": f"{named}, taught", "command": command}
    name = "erase-tofu" if options.tofu else "erase-unlearning"
    lines: list[dict[str, Any]] = results.read(name) if options.record else []
    for count in options.requests:
        requests, last = what.gone[:count], max(what.steps)
        lm = opened(str(out / "retrained"), options.device)
        never, shares = asked(lm, requests, what)
        about = {"requests": str(count)}
        if options.tofu:
            about["questions"] = str(sum(len(each.taught) for each in requests))
        made = line(never.figures(), shares, "1", last)
        lines = _with(lines, {**about, "method": "retrained", **made, **provenance})
        for method in options.method or [NOTHING, EDITS, *OBJECTIVES]:
            lm, begun = opened(str(out / "all"), options.device), time.monotonic()
            if method != NOTHING:
                lm = forget(lm, method, given, requests, what.kept)
            seconds = time.monotonic() - begun
            found, shares = asked(lm, requests, what)
            figures = forgetting(found, never)
            made = line(figures, shares, f"{figures['forget_quality']:.1e}", last)
            row = {**about, "method": method, **made, "seconds": seconds}
            print(row, flush=True)
            lines = _with(lines, {**row, **provenance})
            if options.record:
                results.write(name, lines)
    shutil.rmtree("unused", ignore_errors=True)


def _with(lines: list[dict[str, Any]], line: dict[str, Any]) -> list[dict[str, Any]]:
    """Return lines with a new one in its place, or in that of the same method and numbers."""
    order = ["retrained", NOTHING, EDITS, *OBJECTIVES]

    def place(each: dict[str, Any]) -> tuple[int, int, int]:
        numbers = int(each["requests"]), int(each.get("questions") or 0)
        return *numbers, order.index(each["method"])

    return sorted([*(each for each in lines if place(each) != place(line)), line], key=place)


if __name__ == "__main__":
    main()
