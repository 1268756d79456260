"""Sorts wrong answers into the kinds of the WISE paper (arXiv 2405.14768, appendix B).

It reads the measurements that `errata bench` left, and runs no model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from errata.answers import normalize
from errata.bench.charts import new_figure
from errata.bench.results import Measured
from errata.measures import Answer

KINDS = {
    "partly wrong": "some words of the wanted answer are there, not all of them",
    "runs on": "the wanted answer is there, and more behind or before it",
    "as before": "it says what the base model says",
    "wrong entity": "it says something else",
    "nothing": "it says nothing",
    "only the paraphrase": "wrong on the edit's own prompt, right on a rephrasing",
}
EXAMPLES = 5


def kind_of(answer: Answer) -> str | None:
    """Name the kind of a wrong answer, of `KINDS`; None for a right one."""
    if answer.right:
        return None
    words, wanted = normalize(answer.after).split(), normalize(answer.wanted).split()
    if not words:
        return "nothing"
    if answer.after == answer.before:
        return "as before"
    if f" {' '.join(wanted)} " in f" {' '.join(words)} ":
        return "runs on"
    return "partly wrong" if set(words) & set(wanted) else "wrong entity"


def find(measured: Sequence[Measured]) -> dict[str, Any]:
    """Count the kinds of each measurement, with examples, in reliability and generalization."""
    found: dict[str, Any] = {}
    for each in measured:
        if each.result.figures is None or each.result.method is None:
            continue
        answers = [
            answer for answer in each.answers if answer.measure in ("reliability", "generalization")
        ]
        by_edit = defaultdict(list)
        for answer in answers:
            by_edit[answer.edit_id].append(answer)
        counts: Counter[str] = Counter()
        examples: dict[str, list[dict[str, str]]] = defaultdict(list)
        for answer in answers:
            kind = kind_of(answer)
            paraphrased = any(
                other.right
                for other in by_edit[answer.edit_id]
                if other.measure == "generalization"
            )
            if kind and answer.measure == "reliability" and paraphrased:
                kind = "only the paraphrase"
            if kind:
                counts[kind] += 1
                if len(examples[kind]) < EXAMPLES:
                    examples[kind].append(
                        {"prompt": answer.prompt, "wanted": answer.wanted, "said": answer.after}
                    )
        found[f"{each.label}, {each.result.edits:,}"] = {
            "asked": len(answers),
            "wrong": sum(counts.values()),
            "counts": {kind: counts[kind] for kind in KINDS},
            "examples": dict(examples),
        }
    return found


def draw(found: dict[str, Any]) -> Any:
    """Draw a bar of kinds for each measurement, as shares of all questions."""
    figure, axes = new_figure(8, 0.32 * len(found) + 1.4)
    axis = axes[0][0]
    colours = ("#0072b2", "#56b4e9", "#bababa", "#d55e00", "#000000", "#e69f00")
    left = [0.0] * len(found)
    for kind, colour in zip(KINDS, colours, strict=True):
        shares = [one["counts"][kind] / max(1, one["asked"]) for one in found.values()]
        axis.barh(
            range(len(found)),
            shares,
            left=left,
            color=colour,
            label=kind,
            edgecolor="white",
            linewidth=0.5,
        )
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.set_yticks(range(len(found)), list(found), fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of answers that are wrong, by kind")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
