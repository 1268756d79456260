"""Measures edits that erase: is the old answer still said, and did anything else move?

    python benchmarks/erase.py MODEL ... [--data FOLDER] [-m METHOD ...] [-n 100] [--record]

MODEL is a folder of a pretrained model, which is asked CounterFact's first records (--data), or
`atlas`, which is asked of its own world. All edits erase, in one model, without a refusal of their
own. What the base model tells in answer to an edit's own prompt is its old answer; an edit in whose
answer nothing is told (it repeats the question, or says nothing) is left out, and counted.

    told before, now      prompts whose free answer has a part of the old answer in it (a name, a
                          number, else a rare word): the edit's own, and its paraphrases, before
                          the edits and with them
    refused               own prompts that are answered with the refusal
    neighbour, same subject   other prompts whose answer is what it was
    held the old          of the prompts about the same subject that changed, those whose answer
                          had held the old answer, which is meant to be withheld
    undone                whether all answers are those of before once all edits are undone
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import results
import torch

import errata
from errata import Case, Edit, Probe
from errata.answers import contains_any
from errata.atlas import make_cases
from errata.bench.task import find_task, load
from errata.edit import same_answer
from errata.methods import method_config
from errata.words.names import WordWeights
from errata.words.telling import telling_parts

TOKENS = 24
RARE = WordWeights.from_texts(["the a of in is was to and by for with on at"] * 2)
"""Words of any answer but these few tell something."""


def measure(model: errata.EditModel, cases: Sequence[Case]) -> dict[str, Any]:
    """Erase the cases' facts; return the figures."""

    def told(prompts: Sequence[str]) -> dict[str, str]:
        asked = list(dict.fromkeys(prompts))
        return dict(zip(asked, model.ask(asked, max_new_tokens=TOKENS), strict=True))

    everything = [
        text
        for case in cases
        for text in (
            case.edit.prompt,
            *case.rephrases,
            *(probe.prompt for probe in case.locality),
        )
    ]
    before = told(everything)
    old = {
        case.edit.id: telling_parts(before[case.edit.prompt], case.edit.prompt, RARE)
        for case in cases
    }
    known = [case for case in cases if old[case.edit.id]]
    edits = [
        Edit(case.edit.prompt, subject=case.edit.subject, operation="erase", id=case.edit.id)
        for case in known
    ]
    begun = time.monotonic()
    model.edit(edits, check=False)
    seconds = time.monotonic() - begun
    now = told(everything)

    def share(hits: Sequence[bool]) -> float | None:
        return sum(hits) / len(hits) if hits else None

    def says(answers: dict[str, str], case: Case, texts: Sequence[str]) -> list[bool]:
        return [contains_any(answers[text], old[case.edit.id]) for text in texts]

    found: dict[str, Any] = {"edits": len(known), "left out": len(cases) - len(known)}
    for name, of in (("own", lambda c: [c.edit.prompt]), ("paraphrase", lambda c: c.rephrases)):
        for when, answers in (("before", before), ("now", now)):
            hits = [hit for case in known for hit in says(answers, case, of(case))]
            found[f"{name}: told {when}"] = share(hits)
    found["refused"] = share([same_answer(now[edit.prompt], edit.target) for edit in edits])
    for kind in ("neighbour", "same_subject"):
        asked = [
            (case, probe.prompt) for case in known for probe in case.locality if probe.kind == kind
        ]
        found[f"{kind.replace('_', ' ')} unchanged"] = share(
            [now[prompt] == before[prompt] for _, prompt in asked]
        )
    changed = [(case, prompt) for case, prompt in asked if now[prompt] != before[prompt]]
    found["held the old"] = share([says(before, case, [prompt])[0] for case, prompt in changed])
    found["seconds per edit"] = seconds / len(edits)
    model.undo([edit.id for edit in edits])
    found["undone"] = "exactly" if told(everything) == before else "not exactly"
    return found


def few(probes: Sequence[Probe]) -> tuple[Probe, ...]:
    """Return the first two of each kind."""
    kinds = dict.fromkeys(probe.kind for probe in probes)
    return tuple(each for k in kinds for each in [p for p in probes if p.kind == k][:2])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", type=Path)
    parser.add_argument("-m", "--method", action="append")
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = results.read("erase-edits") if options.record else []
    for name in options.models:
        for method in options.method or ["folio"]:
            if name == "atlas":
                cases = make_cases(options.n, seed=0)
            else:
                cases = load(find_task("counterfact-nested"), options.data).cases[: options.n]
                cases = [replace(case, locality=few(case.locality)) for case in cases]
            base, tokenizer = errata.load_base(name, "float32")
            model = errata.get_edit_model(base, method_config(method), tokenizer)
            found = measure(model, cases)
            line = {"on": Path(name).name, "method": method, **found}
            print(line, flush=True)
            data = "its world" if name == "atlas" else "CounterFact"
            command = f"python benchmarks/erase.py {Path(name).name} -m {method} -n {options.n}"
            lines = [each for each in lines if each["command"] != command]
            lines.append({**line, "data": data, "command": command})
            if options.record:
                results.write("erase-edits", lines)


if __name__ == "__main__":
    main()
