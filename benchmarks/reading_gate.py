"""Measures what reading a fact does to questions that another answer may follow from, and gates.

    python benchmarks/reading_gate.py MODEL ... --data FOLDER [--records 100 140] [--record]

Consequences (two-hop questions about an edit) are to change when the fact is read, other questions
about its subject are not. With the fact in front of both, and with a contrasting fact (another
record's answer in the place of this one's), the answer that is kept is:

    never          the base model's
    always         the one with the fact
    no copy        the one with the fact, unless it contains the edit's answer
    moved          the one with the fact, if it is another with the contrasting fact
    moved, no copy both

`consequences`: share of answers that contain the right one; `unchanged`: share of the other
questions whose answer is the base model's; `read`: share of either that the reading is kept for.
With --record the table goes to docs/results/folio-gates.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import results
import torch

import errata
from errata.answers import contains_any, normalize
from errata.bench.task import find_task, load
from errata.cases import Case
from errata.methods.fact_method import TEMPLATE, fact_context

TASK, BATCH, TOKENS = "counterfact-nested", 32, 24


@dataclass(frozen=True)
class Question:
    """A question about an edit, and its answers without a fact, with it, and with a contrast."""

    prompt: str
    right: tuple[str, ...]
    case: Case
    contrast: Case
    plain: str = ""
    read: str = ""
    contrasted: str = ""

    @property
    def is_consequence(self) -> bool:
        """Whether the edit decides it."""
        return bool(self.right)

    @property
    def is_copy(self) -> bool:
        """Whether the answer with the fact repeats the edit's."""
        return contains_any(self.read, [self.case.edit.target])

    @property
    def is_moved(self) -> bool:
        """Whether it depends on what the fact says."""
        return normalize(self.read) != normalize(self.contrasted)


GATES: dict[str, Callable[[Question], bool]] = {
    "never": lambda _: False,
    "always": lambda _: True,
    "no copy": lambda each: not each.is_copy,
    "moved": lambda each: each.is_moved,
    "moved, no copy": lambda each: each.is_moved and not each.is_copy,
}


def questions_of(cases: Sequence[Case]) -> Iterator[Question]:
    """Yield the consequences of each case, one each, and the other questions of its subject."""
    for place, case in enumerate(cases):
        contrast = cases[(place + 1) % len(cases)]
        for probe in case.portability[:1]:
            if probe.answer:
                yield Question(probe.prompt, (probe.answer, *probe.also), case, contrast)
        for probe in case.locality:
            if probe.kind == "same_subject":
                yield Question(probe.prompt, (), case, contrast)


def answered(lm: errata.LM, questions: Sequence[Question]) -> list[Question]:
    """Return the questions with the base model's answers."""

    def ask(prompts: list[str]) -> list[str]:
        parts = (prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH))
        return [answer for part in parts for answer in lm.generate(part, max_new_tokens=TOKENS)]

    def with_fact(each: Question, target: str) -> str:
        return fact_context(TEMPLATE, replace(each.case.edit, target=target)) + each.prompt

    plain = ask([each.prompt for each in questions])
    read = ask([with_fact(each, each.case.edit.target) for each in questions])
    contrasted = ask([with_fact(each, each.contrast.edit.target) for each in questions])
    return [
        replace(each, plain=first, read=second, contrasted=third)
        for each, first, second, third in zip(questions, plain, read, contrasted, strict=True)
    ]


def lines(questions: Sequence[Question]) -> Iterator[dict[str, Any]]:
    """Yield a line for each gate."""
    consequences = [each for each in questions if each.is_consequence]
    others = [each for each in questions if not each.is_consequence]
    for name, is_read in GATES.items():

        def kept(each: Question, is_read: Callable[[Question], bool] = is_read) -> str:
            return each.read if is_read(each) else each.plain

        yield {
            "gate": name,
            "consequences": _share([contains_any(kept(q), q.right) for q in consequences]),
            "read, consequences": _share([is_read(q) for q in consequences]),
            "unchanged": _share([normalize(kept(q)) == normalize(q.plain) for q in others]),
            "read, others": _share([is_read(q) for q in others]),
            "questions": f"{len(consequences)} and {len(others)}",
        }


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def main() -> None:
    """Print the table, and record it if that is wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, nargs=2, default=(100, 140))
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, last = options.records
    cases = load(find_task(TASK), options.data).cases[first:last]
    for model in options.models:
        name = Path(model).name
        base, tokenizer = errata.load_base(model, "float32")
        found = answered(errata.LM(base, tokenizer), list(questions_of(cases)))
        command = f"python benchmarks/reading_gate.py {name} --records {first} {last}"
        mine = [{"on": name, **line, "model": name, "command": command} for line in lines(found)]
        for line in mine:
            print(line, flush=True)
        if options.record:
            kept = [row for row in results.read("folio-gates") if row["on"] != name]
            results.write("folio-gates", [*kept, *mine])


if __name__ == "__main__":
    main()
