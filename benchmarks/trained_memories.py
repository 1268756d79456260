"""Measures what memories that are trained first say of what they were told, and for how long, on
atlas.

    python benchmarks/trained_memories.py [--methods NAME ...] [--seed 5] [--set NAME=VALUE ...]
        [--folder DIR] [--record]

Each method is trained as `errata prepare` does, on a thousand of atlas's cases, none of them among
those it is asked for. Two tables: `memory-edits`, after 1, 5, 20, 50 and 100 edits, all of which
are asked for; and, of MemoryLLM and M+, which forget, `memory-retention`: how much of an edit is
left after 0, 1, 5, 20 and 50 more, of its vectors, as theory says (of N vectors, those that an edit
is written into replace as many drawn at random) and as counted, and of the fact,
as scored (the share of the target's tokens, in the edit's own words and in others) and as said
freely. Without --folder the trained model is not kept; with it, it is trained once. One thread.
Lines of other methods, and of other settings, that are recorded stay.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch

import errata
from errata import Case, EditModel
from errata.atlas import make_cases, training_cases
from errata.edit import same_answer
from errata.evaluation import evaluate
from errata.methods import method_config
from errata.presets import presets

FORGETTING = ("memoryllm", "mplus")
METHODS = ("retro", "memorizing", "memoria", *FORGETTING)
COUNTS = (1, 5, 20, 50, 100)
LATER = (0, 1, 5, 20, 50)
ASKED, EXAMPLES = 20, 1000
"""Edits whose retention is measured; cases that training learns from."""
FIGURES = ("vectors, in theory", "vectors", "fact", "reworded", "said")
TUNED_ON = 1
"""The seed of the cases on which settings were chosen; nor does training learn from these."""


def trained(method: str, given: dict[str, str], cases: Sequence[Case], folder: Path) -> EditModel:
    """Return the method on atlas without edits, trained or as kept in a folder."""
    base, tokenizer = errata.load_base("atlas", "float32")
    name = "memoryllm" if method in FORGETTING else method
    settings = next((row.settings for row in presets(name) if row.fits(base.config)), {})
    config = method_config(method, **{**settings, **given})
    place = folder / method
    if place.exists():
        return EditModel.from_pretrained(base, place, tokenizer)
    model = errata.get_edit_model(base, config, tokenizer)
    began = time.process_time()
    apart = [*make_cases(max(COUNTS), seed=TUNED_ON), *cases]
    model.prepare([case.example() for case in training_cases(EXAMPLES, apart, seed=2)])
    print(f"{method} trained in {time.process_time() - began:.0f} s", flush=True)
    model.save_pretrained(place)
    return model


def edits(model: EditModel, method: str, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Evaluate the model after so many edits."""
    for count in COUNTS:
        some = cases[:count]
        model.undo([edit.id for edit in model.edits])
        began = time.process_time()
        model.edit([case.edit for case in some], check=False)
        seconds = (time.process_time() - began) / count
        figures = results.measures(evaluate(model, some).to_dict())
        yield {"method": method, "edits": str(count), **figures, "seconds per edit": seconds}


def retention(model: EditModel, method: str, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Ask for edits after others came; each is the first of a stream of its own."""
    found: dict[int, list[tuple[float, ...]]] = {later: [] for later in LATER}
    for place in range(ASKED):
        print(f"{method}: edit {place + 1} of {ASKED}", flush=True)
        stream = [*cases[place:], *cases[:place]]
        model.undo([edit.id for edit in model.edits])
        own, theory = new_vectors(model, stream[0]), 1.0
        for later in range(max(LATER) + 1):
            if later:
                theory *= 1 - new_vectors(model, stream[later]).shape[1] / size_of(model)
            if later in found:
                counted = left(model.method.pool.vectors, own)
                found[later].append((theory, counted, *asked(model, stream[0])))
    for later, rows in found.items():
        yield {
            "method": method,
            "later edits": str(later),
            **{name: fmean(row[i] for row in rows) for i, name in enumerate(FIGURES)},
        }


def size_of(model: EditModel) -> int:
    """Return the number of vectors of a memory, at each layer."""
    size: int = model.method.config.memory_tokens
    return size


def new_vectors(model: EditModel, case: Case) -> torch.Tensor:
    """Write an edit; return the vectors (layers, K, hidden) that it became: as many as its text has
    tokens, `new_tokens` at most.
    """
    before = model.method.pool.vectors
    model.edit([case.edit], check=False)
    after = model.method.pool.vectors
    count = round((1 - left(before, after)) * size_of(model))
    return after[:, size_of(model) - count :].clone()


def left(vectors: torch.Tensor, own: torch.Tensor) -> float:
    """Return the share of vectors (layers, K, hidden) that a memory (layers, N, hidden) has."""
    there = (vectors[:, :, None] == own[:, None]).all(-1).any(1)
    return there.float().mean().item()


def asked(model: EditModel, case: Case) -> tuple[float, float, float]:
    """Return a fact's score in the edit's words, in others, and whether it is said freely."""
    prompts = [case.edit.prompt, *case.rephrases]
    first, *rest = model.score([(prompt, case.edit.target) for prompt in prompts])
    (answer,) = model.ask([case.edit.prompt])
    said = float(same_answer(answer, case.edit.target))
    return first.token_accuracy, fmean(score.token_accuracy for score in rest), said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(each.split("=", 1) for each in options.set)
    cases = make_cases(max(COUNTS), seed=options.seed)
    command = f"python benchmarks/trained_memories.py --seed {options.seed}"
    command += "".join(f" --set {each}" for each in options.set)
    with tempfile.TemporaryDirectory() as temporary:
        models = {
            method: trained(method, given, cases, options.folder or Path(temporary))
            for method in options.methods
        }
    tables = (("memory-retention", retention, FORGETTING), ("memory-edits", edits, METHODS))
    for name, table, about in tables:
        lines = []
        for method, model in models.items():
            for line in table(model, method, cases) if method in about else ():
                print(line, flush=True)
                own = f"{command} --methods {method} --record"
                label = " ".join([method, *options.set])
                lines.append({**line, "method": label, "model": "atlas", "command": own})
        if options.record and lines:
            made = {line["method"] for line in lines}
            kept = [row for row in results.read(name) if row["method"] not in made]
            results.write(name, [*kept, *lines])


if __name__ == "__main__":
    main()
