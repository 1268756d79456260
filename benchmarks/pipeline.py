"""Measures a memory in front of another, beside each of the two alone, on atlas.

    python benchmarks/pipeline.py [rag:wise grace:wise folio:lora] [-n 50] [--seed 3] [--record]

FIRST:THEN are two methods with their own settings. Each method is given the edits once; a pipeline
is made of the two states, which is what it would have written.

    reliability ... locality    of free answers, see `errata eval`
    first / then                of the rewordings, the share that either of the two answers
    first / then, elsewhere     of the prompts for locality
    seconds per edit            of the processor; a pipeline's are those of both methods
    overhead at batch 1 / 8     of 16 new tokens, over the base model

With --record the table goes to docs/results/memory-pipeline.csv.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import results
import torch

import errata
from errata import Case, EditModel
from errata.atlas import make_cases
from errata.bench.run import overhead
from errata.methods import method_config

NAME = "memory-pipeline"
PAIRS = ("rag:wise", "grace:wise", "folio:lora")
MEASURES = ("reliability", "generalization", "locality")


def empty_model(method: str, **settings: Any) -> EditModel:
    """A method on atlas, without edits."""
    base, tokenizer = errata.load_base("atlas", "float32")
    return errata.get_edit_model(base, method_config(method, **settings), tokenizer)


def measured(model: EditModel, cases: Sequence[Case], seconds: float) -> dict[str, Any]:
    """Return the line of an edited model whose edits took so many seconds each."""
    figures = errata.evaluate(model, cases).to_dict()
    line = results.measures(figures, MEASURES)
    if isinstance(model.method.config, errata.PipelineConfig):
        rewordings = [prompt for case in cases for prompt in case.rephrases]
        elsewhere = [probe.prompt for case in cases for probe in case.locality]
        line["first / then"] = answered(model, rewordings)
        line["first / then, elsewhere"] = answered(model, elsewhere)
    line["seconds per edit"] = f"{seconds:.2f}"
    asked = [case.edit.prompt for case in cases]
    line["overhead at batch 1 / 8"] = " / ".join(
        f"{overhead(model, asked, batch):+.0%}" for batch in (1, 8)
    )
    return line


def answered(model: EditModel, prompts: Sequence[str]) -> str:
    """Return the shares of prompts that the first method answers, and the second."""
    by = [each.by for each in model.explain(prompts)]
    names = (model.method.first.name, model.method.then.name)
    return " / ".join(f"{sum(each == name for each in by) / len(by):.2f}" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs", nargs="*", metavar="FIRST:THEN", default=PAIRS)
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = make_cases(options.n, seed=options.seed)
    command = " ".join(
        ["python benchmarks/pipeline.py", *options.pairs, f"-n {options.n} --seed {options.seed}"]
    )
    lines: list[dict[str, Any]] = []
    written: dict[str, tuple[EditModel, float]] = {}

    def tell(name: str, line: dict[str, Any]) -> None:
        found = {"edits": options.n, "method": name, **line, "model": "atlas", "data": "atlas"}
        print(found, flush=True)
        lines.append({**found, "command": command})

    for pair in options.pairs:
        first, then = pair.split(":")
        for name in (first, then):
            if name not in written:
                model = empty_model(name)
                begun = time.process_time()
                model.edit([case.edit for case in cases], check=False)
                seconds = (time.process_time() - begun) / len(cases)
                written[name] = model, seconds
                tell(name, measured(model, cases, seconds))
        parts = [written[name] for name in (first, then)]
        tensors: dict[str, torch.Tensor] = {}
        values: dict[str, Any] = {}
        for role, (part, _) in zip(("first", "then"), parts, strict=True):
            own, values[role] = part.method.state()
            tensors |= {f"{role}.{key}": tensor for key, tensor in own.items()}
        model = empty_model("pipeline", first=first, then=then)
        with model.disable_edits():
            model.method.load_state(parts[0][0].edits, tensors, values)
        name = f"{first}, then {then}"
        tell(name, measured(model, cases, sum(seconds for _, seconds in parts)))
    if options.record:
        results.write(NAME, lines)


if __name__ == "__main__":
    main()
