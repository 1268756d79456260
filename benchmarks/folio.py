"""Measures Folio on models that know the questions by heart: tables of docs/by-heart.md.

    python benchmarks/folio.py --model FACTLM --data FOLDER --record    # everything, in order
    python benchmarks/folio.py results undo ...    # some experiments; without --data on atlas alone

With --record, figures go to docs/results/by-heart-NAME.csv, from which `make docs` writes the
tables; rows that are there are kept, so that a run goes on where it was cut off. FACTLM is a small
model trained on the facts of the published files, FOLDER has these files (see streams.py). One
thread; seconds are the processor's own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import results
import torch
from streams import drawn_again, enlarged, final, published, without_subject

import errata
from errata import Case, Edit, EditModel
from errata.atlas import make_cases
from errata.bench.runs import runs_of
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.leaf import Leaf
from errata.methods.association.folio.method import Folio

Rows = Iterator[dict[str, Any]]
EVERY = 5
"""Of ten thousand edits each so many-th is asked for in the end."""


@dataclass
class Bench:
    """Models and files at hand, and the rows that an earlier call recorded."""

    model: str | None
    data: Path | None
    answers: dict[str, Any] = field(default_factory=dict)
    recorded: list[dict[str, Any]] = field(default_factory=list)

    def open(self, model: str, **settings: Any) -> EditModel:
        """A model without edits. What the base model answers is asked once."""
        base, tokenizer = errata.load_base(model, "float32")
        edited = errata.get_edit_model(base, FolioConfig(**settings), tokenizer)
        edited.base_answers = self.answers.setdefault(model, {})
        edited.method.calibrate()
        return edited

    def streams(
        self, conflict_free: bool = True, counterfact: int = 1000, atlas: int = 1000
    ) -> list[tuple[str, str, list[Case]]]:
        """(name, model, cases) of what is at hand."""
        found = []
        if self.model and self.data:
            for name in ("zsre", "counterfact", "knowedit"):
                cases = published(self.data, name, conflict_free)
                found.append(
                    (name, self.model, cases[:counterfact] if name == "counterfact" else cases)
                )
        return [*found, ("atlas", "atlas", make_cases(atlas))]


def all_streams(bench: Bench) -> Rows:
    """Evaluate the final model on each stream, with subjects and without."""
    known = {row["stream"]: row for row in bench.recorded}
    for conflict_free in (True, False):
        for name, model, cases in bench.streams(conflict_free):
            if name == "atlas" and not conflict_free:
                continue  # it contradicts itself nowhere
            for given in (True, False):
                stream = cases if given else without_subject(cases)
                label = name if conflict_free else f"{name}, as it is"
                label += "" if given else ", no subject given"
                yield known.get(label) or {"stream": label, **_judged(bench.open(model), stream)}


def many(bench: Bench) -> Rows:
    """Write ten thousand edits, and evaluate some of them."""
    known = {row["stream"]: row for row in bench.recorded}
    for name, stream in (
        ("drawn again", drawn_again(10_000)),
        ("enlarged world", enlarged(10_000)),
    ):
        label, asked = (
            f"atlas, {name}",
            (final(stream) if name == "drawn again" else stream)[::EVERY],
        )
        done = known.get(label)
        yield done or {
            "stream": label,
            "asked for": len(asked),
            **_judged(bench.open("atlas"), stream, asked),
        }


def _judged(
    model: EditModel, stream: Sequence[Case], asked: Sequence[Case] | None = None
) -> dict[str, Any]:
    begun = time.process_time()
    report = model.edit([case.edit for case in stream], check=False)
    seconds = (time.process_time() - begun) / len(stream)
    found = errata.evaluate(model, stream if asked is None else asked)
    kinds = {"unrelated": None, "neighbour": None, "same_subject": None, **found.locality_by_kind}
    row: dict[str, Any] = {
        "edits": len(stream),
        "conflicts": len({new for new, _ in report.conflicts}),
    }
    row |= results.measures(
        found.to_dict(), ("reliability", "generalization", "locality"), digits=3
    )
    return {
        **row,
        **{kind.replace("_", " "): kinds[kind] for kind in kinds},
        "seconds per edit": seconds,
    }


def speed(bench: Bench) -> Rows:
    """Time one more edit, its undo and its saving, for several numbers of edits; bytes per edit."""
    model = bench.open("atlas")
    stream = [case.edit for case in enlarged(10_000)]
    for there in (1, 10, 100, 1000, 9900):
        errata.edit_stream(model, stream[:there], check=False)
        writes, undos, more = [], [], stream[there : there + 100]
        for edit in more:
            begun = time.process_time()
            model.edit([edit], check=False)
            writes.append(time.process_time() - begun)
        for edit in more:
            begun = time.process_time()
            model.undo(edit.id)
            undos.append(time.process_time() - begun)
        leaves = model.method.patch.leaves
        size = sum(leaf.key.nbytes + leaf.question.nbytes for leaf in leaves) / len(leaves)
        yield {
            "edits there": there,
            "ms per edit": 1e3 * statistics.median(writes),
            "ms per undo": 1e3 * statistics.median(undos),
            "bytes per edit": round(size),
            **_kept(model, more),
        }


def _kept(model: EditModel, more: Sequence[Edit]) -> dict[str, Any]:
    """Time saving after one more edit, and opening; wall clock, as the disk's time counts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        took, written = [], 0
        for edit in more[:5]:
            before = {file.name: file.stat().st_ino for file in folder.iterdir()}
            model.edit([edit], check=False)
            begun = time.perf_counter()
            model.save_pretrained(folder)
            took.append(time.perf_counter() - begun)
            written = sum(
                file.stat().st_size
                for file in folder.iterdir()
                if before.get(file.name) != file.stat().st_ino
            )
        begun = time.perf_counter()
        opened = errata.load(folder)
        opening = time.perf_counter() - begun
        assert opened.edits == model.edits
        size = sum(file.stat().st_size for file in folder.iterdir())
    model.undo(*(edit.id for edit in more[:5]))
    return {
        "folios": len(model.method.patch.leaves.folios),
        "MB on disk": size / 1e6,
        "s to save one more": statistics.median(took),
        "MB written": written / 1e6,
        "s to open": opening,
    }


def beside(bench: Bench) -> Rows:
    """Time Folio and WISE on the same edits: what is spent once, and what each edit takes.

    What an earlier run kept is not used, or nothing would be spent once.
    """
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, ERRATA_CACHE=empty):
        yield from _beside()


def _beside() -> Rows:
    stream = [case.edit for case in make_cases(141, seed=4)]
    seconds: dict[str, float] = {}
    for run in runs_of(["wise", "folio"], errata.load_base("atlas", "float32")[0].config)[1:]:
        base, tokenizer = errata.load_base("atlas", "float32")
        config = errata.method_class(run.name).config_class.from_dict(run.settings)
        model = errata.get_edit_model(base, config, tokenizer)

        def took(parts: Sequence[Sequence[Any]]) -> float:
            begun = time.process_time()
            for part in parts:
                model.edit(part, check=False)  # noqa: B023
            return time.process_time() - begun

        first = took([stream[:1]])
        singly = took([[edit] for edit in stream[1:41]]) / 40
        together = took([stream[41:91], stream[91:]]) / 100
        for kind, value in (("one in a call", singly), ("fifty in a call", together)):
            ratio = seconds[kind] / value if kind in seconds else None
            seconds.setdefault(kind, value)
            yield {
                "method": run.name,
                "written": kind,
                "s, once": first - singly,
                "seconds per edit": value,
                "WISE takes": f"{ratio:.0f} times as much" if ratio else None,
            }


def index(bench: Bench) -> Rows:
    """Measure routing and lookup cost among many leaves: rephrasings of 1,000 fixed edits."""
    model = bench.open("atlas")
    method: Folio = model.method
    memory, stream = method.patch, enlarged(100_000)
    known, prompts = stream[:1000], []
    for case in known:
        prompts += [(case.edit.id, text) for text in case.rephrases[:1]]
    others = [probe.prompt for case in known[:500] for probe in case.locality]
    model.method.patch.remove()
    asked, other = (
        method.calibrator.read(texts) for texts in ([text for _, text in prompts], others)
    )
    there = 0
    for size in (1_000, 10_000, 100_000):
        added = stream[there:size]
        edits = [case.edit for case in added]
        states = method.calibrator.read([edit.prompt for edit in edits])
        leaves = method.leaves_without_answers(edits)
        for number, (leaf, state) in enumerate(zip(leaves, states, strict=True), start=there):
            memory.leaves.add(number, replace(leaf, key=state.key))
        there = size
        took, right = [], 0
        for (name, _), prompt in zip(prompts, asked, strict=True):
            begun = time.process_time()
            (number,) = memory.leaves.choose([prompt])
            took.append(time.process_time() - begun)
            right += number >= 0 and memory.leaves[number].edit.id == name
        false = sum(number >= 0 for number in memory.leaves.choose(other))
        yield {
            "leaves": size,
            "rephrasings to their own edit": right / len(prompts),
            "other questions to any": false / len(other),
            "ms per lookup, median": 1e3 * statistics.median(took),
            "95 %": 1e3 * sorted(took)[int(0.95 * len(took))],
        }


def undo(bench: Bench) -> Rows:
    """Compare a hundred undone edits with never written ones, and two orders of writing."""
    cases = make_cases(1000, seed=2)
    draw = torch.Generator().manual_seed(0)
    gone = [cases[place].edit.id for place in torch.randperm(1000, generator=draw)[:100].tolist()]
    prompts = [text for case in cases for text in (case.edit.prompt, case.rephrases[0])]

    def made(
        edits: Sequence[Any], taken_back: Sequence[str] = ()
    ) -> tuple[dict[str, Leaf], list[str], float]:
        model = bench.open("atlas")
        model.edit(edits, check=False)
        longest = 0.0
        for name in taken_back:
            begun = time.process_time()
            model.undo(name)
            longest = max(longest, time.process_time() - begun)
        return (
            {leaf.edit.id: leaf for leaf in model.method.patch.leaves},
            model.ask(prompts),
            longest,
        )

    edits = [case.edit for case in cases]
    whole = made(edits)
    undone = made(edits, gone)
    never = made([edit for edit in edits if edit.id not in gone])
    mixed = made([edits[place] for place in torch.randperm(1000, generator=draw).tolist()])
    for label, one, other in (
        ("100 undone, never written", undone, never),
        ("any order, this order", mixed, whole),
    ):
        apart = max(
            float((one[0][name].key - leaf.key).abs().max()) for name, leaf in other[0].items()
        )
        yield {
            "held against each other": label,
            "leaves": f"{len(one[0]):,} and {len(other[0]):,}",
            "largest difference of a key": apart,
            "same answers": sum(a == b for a, b in zip(one[1], other[1], strict=True))
            / len(prompts),
            "longest undo, ms": 1e3 * one[2] if one[2] else None,
        }


EXPERIMENTS: dict[str, Callable[[Bench], Rows]] = {
    "results": all_streams,
    "many": many,
    "speed": speed,
    "beside": beside,
    "index": index,
    "undo": undo,
}


def main() -> None:
    """Run the experiments that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "experiments",
        nargs="*",
        choices=[*EXPERIMENTS, []],
        metavar="EXPERIMENT",
        help=", ".join(EXPERIMENTS),
    )
    parser.add_argument("--model", help="a model that knows the facts of the published files")
    parser.add_argument("--data", type=Path, help="the folder of the published files")
    parser.add_argument("--record", action="store_true", help="keep the figures in docs/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.experiments or EXPERIMENTS:
        bench = Bench(options.model, options.data, recorded=results.read(f"by-heart-{name}"))
        rows: list[dict[str, Any]] = []
        for row in EXPERIMENTS[name](bench):
            model = (
                "atlas"
                if row.get("stream", "atlas").startswith("atlas")
                else Path(options.model).name
            )
            rows.append(
                {**row, "model": model, "command": f"python benchmarks/folio.py {name} --record"}
            )
            print(name, row, flush=True)
            if options.record:
                results.write(f"by-heart-{name}", [*rows, *bench.recorded[len(rows) :]])
        if options.record:
            results.write(f"by-heart-{name}", rows)


if __name__ == "__main__":
    main()
