"""Measures what tells whether two prompts about one subject ask the same, on pretrained models.

    python benchmarks/same_question.py MODEL ... --data FOLDER [--records 100 300] [--record]

Of CounterFact, the edit's prompt beside its paraphrases (the same is asked), and beside the
generation prompts that ask other things of the subject (`counterfact-nested` leaves out those that
ask what the edit answers). For each sign:

    AUC                  of the two
    false at 90 % found  other questions that pass where nine tenths of the paraphrases do
    found, false         at the boundary that was set without these records, where there is one

With --record the table goes to docs/results/folio-signs.csv, for `make docs`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import results
import torch
from torch import Tensor
from torch.nn import functional as F

import errata
from errata import Case
from errata.bench.task import find_task, load
from errata.lm.encoding import in_batches
from errata.methods.association.folio.base_head import BaseHead
from errata.methods.association.folio.config import FolioConfig
from errata.methods.association.folio.question_reader import QuestionReader, asked_of

BATCH = 32
FOUND = 0.9


def signs(model: str, cases: list[Case]) -> Iterator[dict[str, Any]]:
    """Yield a line for each sign."""
    base, tokenizer = errata.load_base(model, "float32")
    lm = errata.LM(base, tokenizer)
    head = BaseHead(lm)
    reader = QuestionReader(head)
    same, other = [], []
    for case in cases:
        prompt, subject = case.edit.prompt, case.edit.subject or ""
        same += [(prompt, text, subject) for text in case.rephrases]
        probes = (probe for probe in case.locality if probe.kind == "same_subject")
        other += [(prompt, probe.prompt, subject) for probe in probes]
    pairs = [*same, *other]

    def compared(score: Any, boundary: float | None = None) -> dict[str, Any]:
        found, false = score[: len(same)], score[len(same) :]
        above = (found[:, None] > false[None]).float().mean() + 0.5 * (
            found[:, None] == false[None]
        ).float().mean()
        line: dict[str, Any] = {
            "AUC": float(above),
            "false at 90 % found": float((false >= found.quantile(1 - FOUND)).float().mean()),
        }
        if boundary is not None:
            line["found"] = float((found >= boundary).float().mean())
            line["false"] = float((false >= boundary).float().mean())
        return {**line, "pairs": f"{len(same)} and {len(other)}"}

    def both(values: dict[str, Tensor], texts: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        one, two = zip(*texts, strict=True)
        return torch.stack([values[t] for t in one]), torch.stack([values[t] for t in two])

    whole = [(one, two) for one, two, _ in pairs]
    prompts = list(dict.fromkeys(text for pair in whole for text in pair))
    ids = [lm.encode_prompt(prompt) for prompt in prompts]
    keys = in_batches(ids, lambda part: list(head.last_hidden_states(part)), BATCH, size=len)
    one, two = both(dict(zip(prompts, keys, strict=True)), whole)
    overlaps = [
        (0.5 * (head.log_probs(a[None]) + head.log_probs(b[None]))).exp().sum()
        for a, b in zip(one, two, strict=True)
    ]
    yield {"sign": "overlap of the next-token distributions", **compared(torch.stack(overlaps))}

    asked = [(asked_of(one, subject), asked_of(two, subject)) for one, two, subject in pairs]
    texts = list(dict.fromkeys(text for pair in asked for text in pair))
    states = dict(zip(texts, reader.states(texts), strict=True))
    one, two = both(states, asked)
    yield {
        "sign": "cosine of the states in the middle",
        **compared(F.cosine_similarity(one, two)),
    }
    space, _ = reader.fit(FolioConfig().false_route)
    scores = space.scores(space.vectors(one), space.vectors(two))
    yield {"sign": "space of questions (folio)", **compared(scores, 0.5)}


@torch.no_grad()
def main() -> None:
    """Print the table, and record it if that is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, nargs=2, default=(100, 300))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, last = options.records
    cases = load(find_task("counterfact-nested"), options.data).cases[first:last]
    rows = []
    for model in options.models:
        name = Path(model).name
        for line in signs(model, cases):
            print(name, line, flush=True)
            command = f"python benchmarks/same_question.py {name} --records {first} {last}"
            rows.append({"on": name, **line, "model": name, "command": command})
            if options.record:
                kept = [row for row in results.read("folio-signs") if row["on"] != name]
                mine = [row for row in rows if row["on"] == name]
                results.write("folio-signs", [*kept, *mine])


if __name__ == "__main__":
    main()
