"""From model to model: corrections taught, edits carried over, training that starts at a part.

    python benchmarks/transfer.py teach TEACHER STUDENT [-n 50] [--set NAME=VALUE ...]
    python benchmarks/transfer.py move SOURCE TARGET [-m METHOD ...] [-n 100]
    python benchmarks/transfer.py match ONE OTHER
    python benchmarks/transfer.py stitch LOWER UPPER
    python benchmarks/transfer.py start TEACHER STUDENT [-m WAY ...] [--seeds 5]
    python benchmarks/transfer.py readout MODEL [-m METHOD ...] [-n 20]
                                  [--data FOLDER] [--record]

A model is `atlas`, its narrow relative (a folder that scripts/atlas/narrow.py wrote), or a folder
of a pretrained one. Edits are atlas's cases, or with --data CounterFact's first records.

teach   Folio's edits of TEACHER are distilled into STUDENT, on their prompts and first rewording.
        `own` and `reworded` were taught, `others` are rewordings that were not; of the prompts for
        locality, which nobody saw, `stays` is the share that is answered as before.
move    edits that a method wrote on SOURCE are carried to TARGET (`errata move --carry`), beside
        the same written there anew, and beside values of the same length in random directions.
match   blocks matched by what their value rows say; `in order` is the rank correlation of the
        matched blocks' numbers. Control: the rows of OTHER in a random basis.
stitch  LOWER's first blocks, then UPPER's last ones: how often an answer's tokens are the
        likeliest, of facts that both know. Control: a random kernel of the same size.
start   STUDENT learns facts that TEACHER knows and it does not (atlas's, or with --data the true
        answers of CounterFact's records that the one says and the other not), by a LoRA that starts
        at the most sensitive part of TEACHER's matrices, at a random one, at the most sensitive
        one's numbers in random order, or as usual. `learned` were trained in two wordings,
        `reworded` are others of theirs; `never` are facts in no example.
readout whether an edit is legible in the matrix that a method changed (`errata analyze readout`):
        the place of its answer's first token among all words, in the median, and how often it is
        one of the first five; in its own change, in another edit's, and in a random direction.

With --record the tables go to docs/results/transfer-*.csv.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch
from scipy.stats import spearmanr
from torch import Tensor

import errata
from errata import Case, EditModel
from errata.analyses import readout as readouts
from errata.analyses.context import AnalysisContext
from errata.answers import contains_any
from errata.atlas import build_world, make_cases
from errata.bench.task import find_task, load
from errata.cli.choices import Choices
from errata.edit import same_answer
from errata.errors import UnknownNameError
from errata.lm import LM
from errata.report import EditReport
from errata.transfer import (
    Bridge,
    Distillation,
    DistillationConfig,
    ParametricTransfer,
    ParametricTransferConfig,
    match_layers,
)
from errata.transfer.moving import carried_values
from errata.transfer.parametric import sensitivity
from errata.transfer.stitching import Stitched
from errata.unlearning import Passage

UNTAUGHT = ("company_founder", "work_author")
"""Relations that scripts/atlas/narrow.py leaves out."""
TRAINED, SAMPLES = 0.5, 32
"""Share of the untaught facts that are learned; passages on which sensitivity is measured."""
WAYS = ("sensitive", "random", "shuffled", "none")
ALL = 300
"""Records of CounterFact from which facts are taken."""
ASKED = 200
"""Facts that are asked, at most."""


def opened(name: str) -> tuple[Any, Any]:
    """Load a base model and its tokenizer."""
    return errata.load_base(name, "float32")


def shown(name: str) -> str:
    """Return a model's name as tables have it."""
    return Path(name).name


def quiet(what: str, done: int, total: int) -> None:
    """Say nothing."""


def edited(name: str, method: str, cases: Sequence[Case]) -> EditModel:
    """Write the cases' edits into a model."""
    base, tokenizer = opened(name)
    config = Choices(method, ()).config(base.config)
    with suppress(UnknownNameError):  # no settings were published for such a model
        config = Choices(method, (), "auto").config(base.config)
    model = errata.get_edit_model(base, config, tokenizer)
    model.edit([case.edit for case in cases], check=False)
    return model


def cases_of(name: str, count: int, data: Path | None) -> list[Case]:
    """Return edits with their probes."""
    if data is None:
        return make_cases(count, seed=1)
    return load(find_task("counterfact-nested"), data).cases[:count]


def share(hits: Sequence[bool]) -> str:
    """Format a share."""
    return f"{fmean(hits):.2f}" if hits else ""


def right(ask: Callable[[list[str]], list[str]], pairs: Sequence[tuple[str, str]]) -> str:
    """Return the share of (prompt, answer) pairs that are answered so, freely."""
    answers = ask([prompt for prompt, _ in pairs]) if pairs else []
    return share(
        [same_answer(said, answer) for said, (_, answer) in zip(answers, pairs, strict=True)]
    )


# teach


def teach(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Distil edits into a student."""
    cases = cases_of(options.models[0], options.n, options.data)
    teacher, student = edited(options.models[0], "folio", cases), LM(*opened(options.models[1]))
    rewordings = {case.edit.id: case.rephrases[:1] for case in cases}
    asked = {
        "own": [(case.edit.prompt, case.edit.target) for case in cases],
        "reworded": [(text, case.edit.target) for case in cases for text in case.rephrases[:1]],
        "others": [(text, case.edit.target) for case in cases for text in case.rephrases[1:]],
    }
    elsewhere = list(dict.fromkeys(probe.prompt for case in cases for probe in case.locality))
    elsewhere = elsewhere[: 2 * ASKED]
    before = student.generate(elsewhere)
    given = dict(each.split("=", 1) for each in options.set)
    config = DistillationConfig.from_dict({"anchors": 512, **given})
    begun = time.monotonic()
    run = Distillation(teacher, student, config, rewordings, [], quiet)
    with tempfile.TemporaryDirectory() as folder:
        learned = LM(run.run(Path(folder), quiet), student.tokenizer)
    seconds = time.monotonic() - begun
    line: dict[str, Any] = {
        "teacher": shown(options.models[0]),
        "student": shown(options.models[1]),
        "edits": len(cases),
        "way": " ".join([run.level, *(f"{name}={value}" for name, value in given.items())]),
    }
    line |= {f"teacher, {name}": right(teacher.ask, pairs) for name, pairs in asked.items()}
    line |= {name: right(learned.generate, pairs) for name, pairs in asked.items()}
    now = learned.generate(elsewhere)
    line["stays"] = share([one == other for one, other in zip(before, now, strict=True)])
    return [{**line, "seconds": seconds}]


# move


def move(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Carry edits from one model to another."""
    lines = []
    for method in options.method or ["grace", "neuraldb", "folio"]:
        cases = cases_of(options.models[0], options.n, options.data)
        source = edited(options.models[0], method, cases)
        for way in ("carried over", "random values", "written anew"):
            base, tokenizer = opened(options.models[1])
            config = replace(source.method.config, layer=None)  # as `errata move` does
            target = errata.get_edit_model(base, config, tokenizer)
            before = target.ask([case.edit.prompt for case in cases])
            begun = time.monotonic()
            if way == "written anew":
                target.edit(source.edits, check=False)
            else:
                carry(source, target, way == "random values")
            seconds = time.monotonic() - begun
            line = {
                "from": shown(options.models[0]),
                "to": shown(options.models[1]),
                "method": method,
                "way": way,
                "edits": len(cases),
                "there": share([r.success for r in source.check_edits(source.edits)]),
                "here": share([r.success for r in target.check_edits(source.edits)]),
                "begins right": begins(target, cases),
                "reworded": right(
                    target.ask, [(t, c.edit.target) for c in cases for t in c.rephrases[:1]]
                ),
                "answers changed": share(
                    [a != b for a, b in zip(before, said(target, cases), strict=True)]
                ),
                "s/edit": seconds / len(cases),
            }
            print(line, flush=True)
            lines.append(line)
    return lines


def said(model: EditModel, cases: Sequence[Case]) -> list[str]:
    """Return the answers to the edits' own prompts."""
    return model.ask([case.edit.prompt for case in cases])


def begins(model: EditModel, cases: Sequence[Case]) -> str:
    """Return the share of edits of whose targets the first token is the likeliest."""
    rows = [model.lm.encode(case.edit.prompt, case.edit.target) for case in cases]
    scores = model.lm.score([(case.edit.prompt, case.edit.target) for case in cases])
    return share(
        [
            score.predicted[0] == row.ids[row.prompt_length]
            for score, row in zip(scores, rows, strict=True)
        ]
    )


def carry(source: EditModel, target: EditModel, at_random: bool) -> EditReport:
    """Let a method take the edits of another model; with values in random directions or not."""
    bridge = Bridge.between(source.lm, target.lm)
    generator = torch.Generator().manual_seed(0)

    def carried(values: Tensor, there: int, here: int) -> Tensor:
        found = carried_values(source.lm, target.lm, bridge, values, there, here)
        if at_random:
            drawn = torch.randn(found.shape, generator=generator)
            length = found.norm(dim=-1, keepdim=True)
            return drawn * length / drawn.norm(dim=-1, keepdim=True)
        return found

    target.edit([])
    with source.disable_edits(), target.disable_edits():
        target.method.take(source.method, carried)
    return EditReport()


# match and stitch


def match(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Match two models' blocks."""
    one, other = (LM(*opened(name)) for name in options.models)
    bridge = Bridge.between(one, other)
    size = len(bridge.other)
    turned = torch.linalg.qr(
        torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )[0]
    control = replace(bridge, other=turned.T @ bridge.other @ turned, cross=bridge.cross @ turned)
    lines = []
    for way, used in (("by their words", bridge), ("random basis", control)):
        begun = time.monotonic()
        found, _ = match_layers(one, other, used)
        pairs = sorted(found.items())
        order = spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic
        lines.append(
            {
                "one": shown(options.models[0]),
                "other": shown(options.models[1]),
                "way": way,
                "shared tokens": bridge.shared,
                "in order": f"{order:.2f}",
                "matched": " ".join(f"{a}-{b}" for a, b in pairs),
                "seconds": time.monotonic() - begun,
            }
        )
    return lines


def stitch(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the lower blocks of one model, then the upper ones of another."""
    lower, upper = (LM(*opened(name)) for name in options.models)
    facts = [fact for fact in build_world().facts.values() if fact.relation.name not in UNTAUGHT]
    rows = [lower.encode(f.prompts()[0], f.answer) for f in facts[:: len(facts) // ASKED][:ASKED]]
    batch = lower.batch(rows)
    places, columns, labels = batch.label_positions(batch.target_mask)
    bridge = Bridge.between(lower, upper)
    drawn = torch.randn(bridge.cross.shape, generator=torch.Generator().manual_seed(0))
    control = replace(bridge, cross=drawn.double() * bridge.cross.norm() / drawn.norm())
    depth = upper.architecture.n_layers

    def accuracy(logits: Tensor) -> str:
        return f"{(logits[places, columns].argmax(-1) == labels).float().mean():.2f}"

    lines = [
        {"lower": shown(options.models[0]), "upper": shown(options.models[1]), "below": "",
         "above": "", "way": f"{name} alone", "tokens right": accuracy(lm.run(batch).logits)}
        for name, lm in (("lower", lower), ("upper", upper))
    ]  # fmt: skip
    for above in range(depth):
        below = round((above + 1) * lower.architecture.n_layers / depth) - 1
        for way, used, part in (
            ("stitched", bridge, 1.0),
            ("random kernel", control, 1.0),
            ("half and half", bridge, 0.5),
            ("half random", control, 0.5),
        ):
            model = Stitched(lower, upper, below, above, used, part)
            lines.append(
                {"lower": shown(options.models[0]), "upper": shown(options.models[1]),
                 "below": below, "above": above, "way": way,
                 "tokens right": accuracy(model.logits(batch))}
            )  # fmt: skip
    return lines


# start


@dataclass(frozen=True)
class Known:
    """A fact that the teacher knows and the student does not.

    Attributes:
        wordings: two that are trained, if it is learned, and one that is not.
        answer: the right one.
    """

    wordings: tuple[str, str, str]
    answer: str


def known(teacher: LM, student: LM, data: Path | None) -> list[Known]:
    """Return such facts: two relations of atlas's, or CounterFact's true answers, as they are."""
    if data is None:
        facts = [fact for fact in build_world().facts.values() if fact.relation.name in UNTAUGHT]
        return [Known((f.prompts()[0], f.prompts()[1], f.prompts()[3]), f.answer) for f in facts]
    cases = cases_of(teacher.name, ALL, data)
    prompts = [case.edit.prompt for case in cases]
    said = zip(teacher.generate(prompts), student.generate(prompts), cases, strict=True)
    return [
        Known((case.edit.prompt, *case.rephrases[:2]), case.truth[0])
        for there, here, case in said
        if contains_any(there, case.truth) and not contains_any(here, case.truth)
    ]


def halves(facts: Sequence[Known]) -> tuple[list[Known], list[Known]]:
    """Return the facts that are learned, and those that are in no example."""
    order = torch.randperm(len(facts), generator=torch.Generator().manual_seed(0)).tolist()
    cut = round(TRAINED * len(facts))
    return [facts[i] for i in order[:cut]], [facts[i] for i in order[cut:]]


def start(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train a student from parts of a teacher."""
    teacher = LM(*opened(options.models[0]))
    learned, never = halves(known(teacher, LM(*opened(options.models[1])), options.data))
    print(f"{len(learned)} facts to learn, {len(never)} in no example", flush=True)
    passages = [Passage(fact.wordings[n], fact.answer) for fact in learned for n in (0, 1)]
    asked = {
        "learned": [(fact.wordings[0], fact.answer) for fact in learned[:ASKED]],
        "reworded": [(fact.wordings[2], fact.answer) for fact in learned[:ASKED]],
        "never": [(fact.wordings[0], fact.answer) for fact in never[:ASKED]],
    }
    given = dict(each.split("=", 1) for each in options.set)
    scores = sensitivity(teacher, passages[: int(given.get("samples", SAMPLES))], quiet)
    lines = []
    for seed in range(options.seeds):
        for way in options.method or WAYS:
            student = LM(*opened(options.models[1]))
            settings = {"block": way, "seed": seed, "samples": SAMPLES, **given}
            config = ParametricTransferConfig.from_dict(settings)
            begun = time.monotonic()
            run = ParametricTransfer(teacher, student, config, passages, scores)
            with tempfile.TemporaryDirectory() as folder:
                model = LM(run.run(Path(folder), quiet), student.tokenizer)
            seconds = time.monotonic() - begun
            loss = {
                name: fmean(score.loss for score in model.score(pairs))
                for name, pairs in asked.items()
            }
            line = {
                "teacher": shown(options.models[0]),
                "student": shown(options.models[1]),
                "start": way,
                "seed": seed,
                **{name: right(model.generate, pairs) for name, pairs in asked.items()},
                **{f"{name}, nats": f"{value:.2f}" for name, value in loss.items()},
                "seconds": seconds,
            }
            print(line, flush=True)
            lines.append(line)
    if not options.record:
        return lines
    return [averaged(lines, way) for way in options.method or WAYS]


def averaged(lines: Sequence[dict[str, Any]], way: str) -> dict[str, Any]:
    """Return the means over seeds, with the lowest and the highest."""
    of = [line for line in lines if line["start"] == way]
    found = {name: of[0][name] for name in ("teacher", "student", "start")} | {"seeds": len(of)}
    for name in of[0]:
        if name not in ("teacher", "student", "start", "seed"):
            values = [float(line[name]) for line in of]
            found[name] = f"{fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    return found


# readout


def readout(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Read edits off the matrices that they changed."""
    lines = []
    for method in options.method or ["rome"]:
        cases = cases_of(options.models[0], options.n, options.data)
        given = dict(each.split("=", 1) for each in options.set)
        context = AnalysisContext(options.models[0], cases, Path(), method, given)
        found = readouts.find(context)
        line = {"on": shown(options.models[0]), "method": method}
        line |= {"with": " ".join(options.set) or "-", "edits": len(found["edits"])}
        line["words"] = found["vocabulary"]
        for kind, name in (("rank", "own"), ("rank in another's", "another's"),
                           ("rank at random", "random")):  # fmt: skip
            line[f"{name}: place"] = f"{found['median'][kind]:,.0f}"
            line[f"{name}: first five"] = f"{found['first 5'][kind]:.2f}"
        for row in found["edits"][:5]:
            print(row, flush=True)
        lines.append(line)
    return lines


KINDS = {
    "readout": readout,
    "teach": teach,
    "move": move,
    "match": match,
    "stitch": stitch,
    "start": start,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("-m", "--method", action="append")
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if len(options.models) != (1 if options.kind == "readout" else 2):
        parser.error(f"{options.kind} takes one model." if options.kind == "readout" else
                     f"{options.kind} takes two models.")  # fmt: skip
    torch.set_num_threads(1)
    with torch.no_grad() if options.kind in ("match", "stitch") else torch.enable_grad():
        lines = KINDS[options.kind](options)
    names = " ".join(map(shown, options.models))
    command = f"python benchmarks/transfer.py {options.kind} {names}"
    command += "".join(f" --set {each}" for each in options.set)
    command += f" -n {options.n}" if options.kind == "teach" else ""
    for line in lines:
        line["command"] = command
        print(line, flush=True)
    if options.record:
        kept = [
            each
            for each in results.read(f"transfer-{options.kind}")
            if each["command"] != command
            or (options.method and (each.get("method") or each.get("start")) not in options.method)
        ]
        results.write(f"transfer-{options.kind}", [*kept, *lines])


if __name__ == "__main__":
    main()
