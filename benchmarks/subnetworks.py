"""Knowledge-critical subnetworks of atlas: what goes with them, and whether two draws find one.

    python benchmarks/subnetworks.py [--seeds 2] [--set NAME=VALUE ...] [--record]

Eight of atlas's facts are to go and eighty to stay, while which weights of the upper half are zero
is learned (`errata unlearn -m subnetwork`). Asked freely: those facts as they were trained on and
reworded, those that were to stay, and 32 of which training heard nothing. `overlap` is the share of
a seed's weights that the first seed found, too; `chance`, if as many of each matrix were drawn.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch

import errata
from errata.answers import contains_any
from errata.atlas import make_cases
from errata.cases import Case
from errata.lm import LM
from errata.unlearning import Passage, Subnetwork, Unlearning, config_of

GONE, KEPT, OTHERS = 8, 80, 32
TOKENS = 16


def opened() -> LM:
    return LM(*errata.load_base("atlas", "float32"))


def said(lm: LM, cases: Sequence[Case], answers: Sequence[str], reworded: bool = False) -> float:
    """Return the share of answers that stand in what a model says."""
    prompts = [case.rephrases[0] if reworded else case.edit.prompt for case in cases]
    found = lm.generate(prompts, max_new_tokens=TOKENS)
    return fmean(
        float(contains_any(text, [answer])) for text, answer in zip(found, answers, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(each.split("=", 1) for each in options.set)
    cases = make_cases(GONE + KEPT + OTHERS, seed=2)
    told = opened().generate([case.edit.prompt for case in cases], max_new_tokens=TOKENS)
    answers = [answer.rstrip(".") for answer in told]
    passages = [
        Passage(case.edit.prompt, answer) for case, answer in zip(cases, answers, strict=True)
    ]
    gone, kept, others = (
        slice(0, GONE), slice(GONE, GONE + KEPT), slice(GONE + KEPT, len(cases))
    )  # fmt: skip
    lines: list[dict[str, Any]] = []
    first: Subnetwork | None = None
    for seed in range(options.seeds):
        config = config_of("subnetwork", {**given, "seed": str(seed), "save_every": "0"})
        run = Unlearning(opened(), "subnetwork", config, passages[gone], passages[kept])
        with tempfile.TemporaryDirectory() as folder:
            model = run.run(Path(folder), lambda *_: None)
        lm, found = LM(model, run.lm.tokenizer), run.subnetwork
        assert found is not None
        line: dict[str, Any] = {
            "seed": str(seed),
            "zero": f"{found.size / found.among:.2%} of {found.among:,}",
            "forgotten, said": said(lm, cases[gone], answers[gone]),
            "reworded": said(lm, cases[gone], answers[gone], reworded=True),
            "kept": said(lm, cases[kept], answers[kept]),
            "never heard of": said(lm, cases[others], answers[others]),
            "overlap": None,
            "chance": None,
        }
        if first is not None:
            line["overlap"], line["chance"] = found.overlap(first)
        first = first or found
        print(line, flush=True)
        command = "python benchmarks/subnetworks.py" + "".join(f" --set {e}" for e in options.set)
        lines.append({**line, "model": "atlas", "command": f"{command} --seeds {options.seeds}"})
    if options.record:
        results.write("erase-subnetworks", lines)


if __name__ == "__main__":
    main()
