"""Measures variants of WISE and perfect routing as the stream grows: WISE, table 6 and figure 6.

Wang et al., arXiv 2405.14768. Retrieval precision is the share of edits whose own memory is the
most active one; with perfect routing every question goes to the memory that holds its edit, and all
others to the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from command import run

import errata
from errata.analyses.context import AnalysisContext
from errata.bench.charts import new_figure
from errata.cases import Case
from errata.edit import same_answer
from errata.methods.association.wise.config import WiseConfig
from errata.methods.association.wise.method import Wise
from errata.model import EditModel
from errata.stream import edit_stream

REPLAY = 2
MEASURES = ("reliability", "generalization", "locality")


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure free answers after a thirtieth, a tenth, a third of the edits, and all of them."""
    config = WiseConfig.from_dict(context.settings)
    variants = {
        "Merge": replace(config, variant="merge"),
        "Retrieve": replace(config, variant="retrieve"),
        "Retrieve, replay": replace(config, variant="retrieve", memo=REPLAY),
    }
    cases = list(context.cases)
    sizes = sorted({max(1, len(cases) // part) for part in (30, 10, 3, 1)})
    found: dict[str, Any] = {"edits": sizes, "measured": {}, "precision": {}}
    for label, settings in variants.items():
        base, tokenizer = context.base()
        model = errata.get_edit_model(base, settings, tokenizer)
        for number, edits in enumerate(sizes, start=1):
            context.progress(label, number, len(sizes))
            edit_stream(model, [case.edit for case in cases[:edits]], check=False)
            now = cases[:edits]
            found["measured"].setdefault(label, []).append(errata.evaluate(model, now).generated)
            if label != "Merge":
                found["precision"].setdefault(label, []).append(precision(model, now))
            if label == "Retrieve":
                found["measured"].setdefault("perfect routing", []).append(
                    perfectly_routed(model, now)
                )
    return found


def _wise(model: EditModel) -> Wise:
    method = model.method
    if not isinstance(method, Wise):
        raise TypeError(f"expected the method with side memories, got {type(method).__name__}.")
    return method


def _memory_of(model: EditModel) -> dict[str, int]:
    """Edit id -> the number of the side memory that holds it."""
    return {
        e.id: number
        for number, group in enumerate(_wise(model).groups())
        for shard in group
        for e in shard.edits
    }


def precision(model: EditModel, cases: Sequence[Case]) -> float:
    """The share of edits whose own memory is the most active one on their prompt."""
    active = _wise(model).patch.probe(model.lm, [case.edit.prompt for case in cases])
    best: list[int] = active.argmax(0).tolist()
    holds = _memory_of(model)
    right = sum(holds[case.edit.id] == number for case, number in zip(cases, best, strict=True))
    return float(right / len(cases))


def perfectly_routed(model: EditModel, cases: Sequence[Case]) -> dict[str, float | None]:
    """Measure free answers where each question is routed to the memory that holds its edit."""
    patch, holds = _wise(model).patch, _memory_of(model)
    memories = list(patch.memories)
    right: dict[str, list[bool]] = {"reliability": [], "generalization": []}
    try:
        for number, memory in enumerate(memories):
            mine = [case for case in cases if holds[case.edit.id] == number]
            patch.memories = [replace(memory, threshold=0.0)]
            for measure, pairs in (
                ("reliability", [(case.edit.prompt, case.edit.target) for case in mine]),
                (
                    "generalization",
                    [(prompt, case.edit.target) for case in mine for prompt in case.rephrases],
                ),
            ):
                said = (
                    model.ask([prompt for prompt, _ in pairs], max_new_tokens=24) if pairs else []
                )
                right[measure] += [
                    same_answer(answer, target)
                    for answer, (_, target) in zip(said, pairs, strict=True)
                ]
    finally:
        patch.memories = memories
    return {
        **{name: sum(some) / len(some) if some else None for name, some in right.items()},
        "locality": 1.0,
    }


def draw(found: dict[str, Any]) -> Any:
    """Draw a panel for each measure and one for precision, a line for each variant."""
    figure, axes = new_figure(12, 3.4, columns=4)
    looks = {
        "Merge": "#0072b2",
        "Retrieve": "#d55e00",
        "Retrieve, replay": "#009e73",
        "perfect routing": "#000000",
    }
    for axis, measure in zip(axes[0], (*MEASURES, "precision"), strict=True):
        for marker, (label, colour) in zip("os^D", looks.items(), strict=True):
            rows = (
                found["precision"].get(label)
                if measure == "precision"
                else [x[measure] for x in found["measured"][label]]
            )
            if rows and None not in rows:
                axis.plot(found["edits"], rows, color=colour, marker=marker, label=label)
        axis.set_title("retrieval precision" if measure == "precision" else measure, fontsize=11)
        axis.set_xlabel("edits")
        axis.set_ylim(-0.03, 1.03)
    axes[0][0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    run(find, draw)
