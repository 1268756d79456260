"""Measures whether Folio's router holds on a real model when a stream grows.

    python benchmarks/route_many.py MODEL --data FOLDER [--edits 100 1000] [--asked 100] [--record]

The first records of CounterFact's stream are asked about after so many edits: what Folio would
answer their prompts with (`explain`; nothing is generated).

    prompt, paraphrase         the share that is answered with the right target
    neighbour, same_subject    the share that is left to the base model
    read                       the share of all prompts that a fact would be read for

With --record the table goes to docs/results/folio-growing.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import results
import torch

import errata
from errata.bench.task import find_task, load
from errata.cases import Case
from errata.edit import same_answer

TASK, BATCH, NEIGHBOURS = "counterfact-nested", 64, 2


def prompts_of(cases: Sequence[Case]) -> Iterator[tuple[str, str, str | None]]:
    """Yield (kind, prompt, the target that is to be said, or None) of cases."""
    for case in cases:
        yield "prompt", case.edit.prompt, case.edit.target
        for text in case.rephrases:
            yield "paraphrase", text, case.edit.target
        for kind, most in (("neighbour", NEIGHBOURS), ("same_subject", None)):
            probes = [probe for probe in case.locality if probe.kind == kind]
            for probe in probes[:most]:
                yield kind, probe.prompt, None


def asked(model: errata.EditModel, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the shares by kind of what is answered as it should be."""
    questions = list(prompts_of(cases))
    targets = {edit.id: edit.target for edit in model.edits}
    right: dict[str, list[bool]] = {}
    read = 0
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        found = model.explain([prompt for _, prompt, _ in part])
        for (kind, _, wanted), told in zip(part, found, strict=True):
            said = targets.get(told.edit_id or "")
            main = told.edit_id is None and not told.read
            is_right = main if wanted is None else said is not None and same_answer(said, wanted)
            right.setdefault(kind, []).append(is_right)
            read += bool(told.read)
    shares = {kind: sum(each) / len(each) for kind, each in right.items()}
    return {**shares, "read": read / len(questions), "prompts": f"{len(questions):,}"}


def main() -> None:
    """Print the table, and record it if that is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--asked", type=int, default=100)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = Path(options.model).name
    cases = load(find_task(TASK), options.data).cases
    base, tokenizer = errata.load_base(options.model, "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    rows, written = [], 0
    for count in sorted(options.edits):
        model.edit([case.edit for case in cases[written:count]], check=False)
        written = count
        row = {"on": name, "T": f"{count:,}", **asked(model, cases[: options.asked])}
        command = f"python benchmarks/route_many.py {name} --asked {options.asked}"
        row |= {"model": name, "command": command}
        rows.append(row)
        print(row, flush=True)
    if options.record:
        kept = [row for row in results.read("folio-growing") if row["on"] != name]
        results.write("folio-growing", [*kept, *rows])


if __name__ == "__main__":
    main()
