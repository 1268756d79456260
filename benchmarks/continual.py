"""Tasks one after another, under each plug-in of `errata learn`, on three streams.

    python benchmarks/continual.py facts [labels texts] [-m NAME ...] [--seeds 0 1 2 3 4]
        [--model FOLDER --data FOLDER] [--out build/continual] [--set NAME=VALUE ...] [--record]

    facts    atlas, five relations, 16 new facts each; a fact is asked as it was learned
    labels   atlas, which of two relations a question asks, five times: ten labels in the end, all
             of them to choose from; the tests are other questions in other words
    texts    SmolLM2-135M-Instruct, twelve documents of each of five kinds, which are asked as they
             were read: of an encyclopaedia, questions about authors who do not exist, web pages,
             descriptions of topics, lists of names (--model is that model, --data a folder with
             `text/wikitext-2-valid.txt`, and with the files of TOFU and of WISE's hallucination
             and temporal tasks in `tofu`, `wise_hallucination` and `wise_temporal`)

Beside what `errata learn` reports it asks what no task is about: on atlas 30 facts of the model's
own world (`own world`), on SmolLM2 TOFU's facts of the world (`world facts`), and documents of the
five kinds that were not read (`others`). A line is written as soon as it is there, and one that is
there already is kept, so that a run that was cut off goes on. The rate of a stream was set by hand
on other seeds, by plain fine-tuning, so that it forgets, that of what stands beside the model by
itself; facts are learned at a slower one, too. The strengths follow from the sizes of
what they weigh, and were not searched for.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch

import errata
from errata.atlas import build_world
from errata.atlas.phrasings import RELATIONS
from errata.continual import PLUGINS, Continual, Task, config_of
from errata.continual.answering import accuracy
from errata.lm import LM
from errata.storage.json_lines import parse_json_lines
from errata.unlearning import Passage

FACTS = ("person_birthplace", "person_occupation", "person_employer", "person_language",
         "company_hq")  # fmt: skip
PER_RELATION, OWN = 16, 30
LABELS = (
    ("city_country", "person_language"), ("city_mayor", "person_birthplace"),
    ("country_capital", "company_founder"), ("work_author", "person_employer"),
    ("work_genre", "landmark_country"),
)  # fmt: skip
PER_LABEL, TESTS = 12, 4
DOCUMENTS, ASKED, SHORTEST, LENGTH = 12, 8, 120, 200
"""Documents of a kind, and others to be asked; characters that each has at least, and are read."""
WEB_PAGES = Path("wise_hallucination", "hallucination-edit.json")
TOPICS = Path("wise_temporal", "temporal-edit.json")
COMMON: dict[str, dict[str, Any]] = {
    "facts": {"lr": 2e-3, "epochs": 8, "batch": 8},
    "labels": {"lr": 5e-4, "epochs": 4, "batch": 8},
    "texts": {"lr": 2e-3, "epochs": 3, "batch": 4, "trains": "values", "blocks": 6},
}
BESIDE = "lr=0.003"
"""Of what is put beside the model, which begins at nothing."""
SLOWER = "lr=0.0005"
"""A rate at which plain fine-tuning, on another seed, learns all facts and forgets hardly any."""
LINES = {
    "facts": (
        "naive", "er memory=30", "ewc strength=1e7", f"lora {BESIDE}", "gpm", "packnet keep=0.1",
        "si strength=3", "derpp memory=30", "a-gem memory=30", f"lora {BESIDE} task=found", "lwf",
        "mas strength=0.01", f"o-lora {BESIDE}", "sam", "ogd", "mir memory=30", "gem per_task=6",
        "prompt-pool lr=0.1", "progressive lr=0.01", "ewc strength=1e7 decay=0.9",
        *(
            f"{each} {SLOWER}"
            for each in ("naive", "er memory=30", "ewc strength=1e7", "si strength=3", "gpm", "ogd",
                         "gem per_task=6", "derpp memory=30", "packnet keep=0.1", "lwf",
                         "mas strength=0.01", "a-gem memory=30", "mir memory=30", "sam")
        ),
    ),
    "labels": (
        "naive", "er memory=20", "nearest-mean", "ewc strength=1e7", f"lora {BESIDE} task=found",
        "gpm", "derpp memory=20", "si strength=3", "lwf", "a-gem memory=20",
        "packnet keep=0.1 task=found", f"o-lora {BESIDE}", "prompt-pool lr=0.1",
        "progressive lr=0.01 task=found", "mas strength=0.01", "sam", "ogd", "mir memory=20",
        "gem per_task=4", "ewc strength=1e7 decay=0.9",
    ),
    "texts": (
        "naive", "er memory=12", "ewc strength=1e7", "lora lr=0.01", "gpm", "si strength=3",
        "lora lr=0.01 task=found", "derpp memory=12", "a-gem memory=12", "lwf",
        "mas strength=0.01", "o-lora lr=0.01", "sam", "mir memory=12",
        "gem per_task=6", "ogd", "packnet keep=0.1",
        "prompt-pool lr=0.03", "progressive lr=0.01", "ewc strength=1e7 decay=0.9",
    ),
}  # fmt: skip
"""What is run, with the settings that are its own."""


def facts(seed: int) -> list[Task]:
    """Five relations, with new answers."""
    world, rng = build_world(), random.Random(f"facts {seed}")
    tasks = []
    for name in FACTS:
        known = [fact for fact in world.facts.values() if fact.relation.name == name]
        made = []
        for fact in rng.sample(known, PER_RELATION):
            others = [each for each in world.candidates(fact.relation) if each != fact.answer]
            made.append(Passage(fact.prompts()[0], rng.choice(others)))
        tasks.append(Task(name, "questions", tuple(made), tuple(made)))
    return tasks


def own_world(seed: int, apart: Sequence[Task]) -> Task:
    """Facts of the model's own world that no task changes."""
    taken = {each.prompt for task in apart for each in task.examples}
    known = [each for each in build_world().facts.values() if each.prompts()[0] not in taken]
    drawn = random.Random(f"own {seed}").sample(known, OWN)
    asked = tuple(Passage(fact.prompts()[0], fact.answer) for fact in drawn)
    return Task("own world", "questions", asked, asked)


def labels(seed: int) -> list[Task]:
    """Which relation a question asks for, two relations a task."""
    world, rng = build_world(), random.Random(f"labels {seed}")
    by_name = {relation.name: relation for relation in RELATIONS}
    tasks = []
    for pair in LABELS:
        parts: tuple[list[Passage], list[Passage]] = [], []
        for name in pair:
            known = [fact for fact in world.facts.values() if fact.relation.name == name]
            drawn = rng.sample(known, PER_LABEL + TESTS)
            ways = len(by_name[name].templates)
            for number, fact in enumerate(drawn):
                test = number >= PER_LABEL
                way = rng.randrange(ways - 2) if not test else rng.randrange(ways - 2, ways)
                parts[test].append(Passage(fact.prompts()[way], name.replace("_", " ")))
        tasks.append(Task(" ".join(pair), "labels", tuple(parts[0]), tuple(parts[1])))
    return tasks


def texts(seed: int, data: Path) -> tuple[list[Task], Task]:
    """Documents of five kinds, and others of these kinds."""
    wiki = (data / "text" / "wikitext-2-valid.txt").read_text(encoding="utf-8").split("\n")
    authors = parse_json_lines(data / "tofu" / "retain_perturbed_400.json", dict)
    facts = build_world().facts.values()
    kinds = {
        "wikipedia": [line.strip() for line in wiki],
        "authors": [f"{one['question']} {one['answer']}" for _, one in authors],
        "web pages": _joined(data / WEB_PAGES, "locality_prompt", "locality_ground_truth", ""),
        "topics": _joined(data / TOPICS, "prompt", "target_new", " "),
        "lists": [
            "\n".join(f"{each.subject.name}; {each.answer}" for each in part)
            for part in zip(*[iter(facts)] * 8, strict=False)
        ],
    }
    rng, tasks, others = random.Random(f"texts {seed}"), [], list[Passage]()
    for name, whole in kinds.items():
        drawn = rng.sample([each for each in whole if len(each) >= SHORTEST], DOCUMENTS + ASKED)
        read = tuple(Passage("", text[:LENGTH]) for text in drawn)
        tasks.append(Task(name, "documents", read[:DOCUMENTS], read[:DOCUMENTS]))
        others += read[DOCUMENTS:]
    return tasks, Task("others", "documents", tuple(others), tuple(others))


def _joined(path: Path, first: str, second: str, between: str) -> list[str]:
    records = json.loads(path.read_text(encoding="utf-8"))
    return [f"{each[first]}{between}{each[second]}" for each in records]


def world_facts(data: Path) -> Task:
    """Facts of the world that no document is about, as documents: questions with their answers."""
    records = parse_json_lines(data / "tofu" / "world_facts_perturbed.json", dict)
    asked = tuple(Passage("", f"{one['question']} {one['answer']}") for _, one in records)
    return Task("world facts", "documents", asked, asked)


def line(
    stream: str, label: str, settings: dict[str, Any], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Run one plug-in, the first word of its label, on one stream."""
    name = label.split()[0]
    on_texts = stream == "texts"
    model = options.model if on_texts else "atlas"
    if on_texts:
        tasks, others = texts(seed, options.data)
        elsewhere = [others, world_facts(options.data)]
    else:
        tasks = globals()[stream](seed)
        elsewhere = [own_world(seed, tasks)]
    lm = LM(*errata.load_base(model, "float32"))
    config = config_of(name, {**COMMON[stream], **settings, "seed": seed})
    run = Continual(lm, name, config, tasks)
    rows = [[test.rows(lm) for test in each.tests] if on_texts else [] for each in elsewhere]

    def kept(asked: int | None) -> list[float]:
        return [
            accuracy(run.plugin, run.learner, each, {}, own, asked, lambda: None)
            for each, own in zip(elsewhere, rows, strict=True)
        ]

    before = kept(None)
    folder = options.out / f"{stream}-{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    run.run(folder, lambda *_: None)
    record = run.record()
    after = kept(None if run.plugin.separate else len(tasks) - 1)
    beside: dict[str, float] = {}
    for each, old, new in zip(elsewhere, before, after, strict=True):
        beside |= {f"{each.name}, before": old} if on_texts else {}
        beside[each.name] = new
    (folder / "learn.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    (folder / "learn-state.pt").unlink()
    return {
        "with": label,
        "kind": PLUGINS[name].kind,
        "seed": seed,
        **({"before": fmean(record["before"])} if on_texts else {}),
        "average accuracy": record["average_accuracy"],
        "forgetting": record["forgetting"],
        "backward transfer": record["backward_transfer"],
        "plasticity": record["plasticity"],
        "first task, at the end": record["accuracy"][-1][0],
        **beside,
        "seconds": record["seconds"],
        "settings": json.dumps(config.to_dict()),
        "model": Path(model).name,
        "data": stream,
        "command": f"python benchmarks/continual.py {stream} "
        + ("--model FOLDER --data FOLDER --record" if on_texts else "--record"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("streams", nargs="+", choices=list(COMMON))
    parser.add_argument("-m", dest="methods", nargs="+", default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--model", help="of texts")
    parser.add_argument("--data", type=Path, help="of texts")
    parser.add_argument("--out", type=Path, default=Path("build/continual"))
    parser.add_argument("--set", dest="settings", nargs="+", default=[])
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    if "texts" in args.streams and not (args.data and args.model):
        parser.error("texts needs --model and --data.")
    torch.set_num_threads(1)
    more = dict(each.split("=", 1) for each in args.settings)
    for seed in args.seeds:
        for stream in args.streams:
            for entry in args.methods or list(LINES[stream]):
                name = entry.split()[0]
                own = dict(each.split("=", 1) for each in entry.split()[1:])
                if name == "nearest-mean" and stream != "labels":
                    continue
                rows = results.read(f"continual-{stream}")
                settings = {**own, **more}
                label = " ".join([name, *(f"{key}={each}" for key, each in settings.items())])
                if args.record and any(
                    row["with"] == label and row["seed"] == str(seed) for row in rows
                ):
                    continue
                made = line(stream, label, settings, seed, args)
                print(json.dumps({key: made[key] for key in list(made)[:14]}), flush=True)
                if args.record:
                    results.write(f"continual-{stream}", [*rows, made])


if __name__ == "__main__":
    main()
