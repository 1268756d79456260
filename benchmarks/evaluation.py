"""Measures what an evaluation costs beside the forward passes that it needs.

    python benchmarks/evaluation.py [--model atlas] [--edits 100]
        [--methods folio,grace,ft-m,rag] [--rounds 3]

An evaluation of an edited model is run as it always is, the base model's answers included, on one
thread; each of the model's forward passes is timed (a method's patches are a part of them). The
figure is all of the time over that of the passes: it holds the tokenizer, transformers' own work
between two passes, the comparing of answers. Seconds are the processor's own, and the median of the
rounds is printed; a round before them warms up.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import errata
from errata import EditModel
from errata.atlas import make_cases
from errata.bench.runs import runs_of


def evaluated(model: EditModel, cases: list[Any]) -> tuple[float, list[float], int]:
    """Evaluate; returns (seconds in all, seconds of each forward pass, number of questions)."""
    model.base_answers.clear()
    passes: list[float] = []
    forward: Callable[..., Any] = model.base.forward

    def timed(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        said = forward(*args, **options)
        passes.append(time.process_time() - began)
        return said

    model.base.forward = timed
    try:
        began = time.process_time()
        found = errata.evaluate(model, cases)
        return time.process_time() - began, passes, len(found.answers)
    finally:
        del model.base.forward


def main() -> None:
    read = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    read.add_argument("--model", default="atlas")
    read.add_argument("--methods", default="folio,grace,ft-m,rag")
    read.add_argument("--edits", type=int, default=100)
    read.add_argument("--rounds", type=int, default=3)
    given = read.parse_args()
    torch.set_num_threads(1)
    cases = make_cases(given.edits)
    print("| method | questions | passes | seconds | of which passes | all / passes |")
    print("|---|---|---|---|---|---|")
    for run in runs_of(
        given.methods.split(","), errata.load_base(given.model, "float32")[0].config
    )[1:]:
        base, tokenizer = errata.load_base(given.model, "float32")
        config = errata.method_class(run.method or "").config_class.from_dict(run.settings)
        model = errata.get_edit_model(base, config, tokenizer)
        model.edit([case.edit for case in cases], check=False)
        rounds = [evaluated(model, cases) for _ in range(given.rounds + 1)][1:]
        ratio = statistics.median(took / sum(passes) for took, passes, _ in rounds)
        took, passes, questions = rounds[-1]
        cells = [
            run.name,
            str(questions),
            str(len(passes)),
            f"{took:.2f}",
            f"{sum(passes):.2f}",
            f"{ratio:.3f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
