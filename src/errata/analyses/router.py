"""Measures a router's activations on edits, rephrasings and other prompts, against its threshold.

After figure 3 of WISE (arXiv 2405.14768). It only reads a `SideMemory`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import errata
from errata.analyses.context import AnalysisContext
from errata.bench.charts import new_figure
from errata.cases import Case
from errata.errors import ConfigError
from errata.methods.association.wise.config import WiseConfig
from errata.methods.association.wise.patch import SideMemory
from errata.model import EditModel
from errata.stream import edit_stream

COLOURS = ("#0072b2", "#56b4e9", "#000000", "#e69f00", "#d55e00")


@dataclass(frozen=True)
class RouterView:
    """Each prompt's largest activation, relative to the threshold of the nearest memory.

    Attributes:
        activations: group name -> activation / threshold per prompt; above 1 the side memory
            answers.
    """

    activations: dict[str, list[float]]

    def share_above(self, group: str) -> float:
        """Share of a group's prompts that go to a side memory."""
        values = self.activations[group]
        return sum(value > 1 for value in values) / len(values)


def view_router(model: EditModel, cases: Sequence[Case]) -> RouterView:
    """Compute the activations of the cases' prompts, by group.

    Raises:
        ConfigError: the method has no router, or nothing has been written yet.
    """
    patch = model.method.patch
    if not isinstance(patch, SideMemory) or not patch.memories:
        raise ConfigError("there is no router to look at: edit with a side memory (wise) first.")
    groups = {
        "edits": [case.edit.prompt for case in cases],
        "rephrasings": [prompt for case in cases for prompt in case.rephrases],
    }
    for kind, name in (
        ("unrelated", "unrelated"),
        ("neighbour", "neighbours"),
        ("same_subject", "same subject"),
    ):
        groups[name] = [
            probe.prompt for case in cases for probe in case.locality if probe.kind == kind
        ]
    thresholds = [memory.threshold for memory in patch.memories]
    found = {}
    for name, prompts in groups.items():
        if prompts:
            best = patch.probe(model.lm, prompts).max(0)
            chosen = [thresholds[j] for j in best.indices.tolist()]
            found[name] = [
                value / limit for value, limit in zip(best.values.tolist(), chosen, strict=True)
            ]
    return RouterView(found)


def auc(inside: Sequence[float], outside: Sequence[float]) -> float:
    """The probability that a prompt in scope is more active than one out of it; ties count half."""
    ranked = sorted([(value, 0) for value in outside] + [(value, 1) for value in inside])
    rank, total, place = 1, 0.0, 0
    while place < len(ranked):
        same = place
        while same < len(ranked) and ranked[same][0] == ranked[place][0]:
            same += 1
        mean = rank + (same - place - 1) / 2
        total += mean * sum(kind for _, kind in ranked[place:same])
        rank += same - place
        place = same
    return (total - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside))


def find(context: AnalysisContext) -> dict[str, Any]:
    """Measure activations over thresholds after 1 %, 10 % and all edits; AUC and shares above.

    Raises:
        ConfigError: the method has no router.
    """
    config = WiseConfig.from_dict(context.settings)
    cases = list(context.cases)
    views = {}
    base, tokenizer = context.base()
    model = errata.get_edit_model(base, config, tokenizer)
    for number, edits in enumerate(
        sorted({max(1, len(cases) // 100), max(1, len(cases) // 10), len(cases)}), start=1
    ):
        context.progress("editing", number, 3)
        edit_stream(model, [case.edit for case in cases[:edits]], check=False)
        views[edits] = view_router(model, cases[:edits])
    return side_by_side(views)


def side_by_side(views: Mapping[int, RouterView]) -> dict[str, Any]:
    """Collect views for `draw`: activations, shares above the threshold, AUC, by edits."""
    found: dict[str, Any] = {"edits": [], "activations": [], "above": [], "auc": []}
    for edits, view in views.items():
        inside = [
            value for name in ("edits", "rephrasings") for value in view.activations.get(name, [])
        ]
        others = [
            values
            for name, values in view.activations.items()
            if name not in ("edits", "rephrasings")
        ]
        outside = [value for values in others for value in values]
        found["edits"].append(edits)
        found["activations"].append(view.activations)
        found["above"].append({name: view.share_above(name) for name in view.activations})
        found["auc"].append(auc(inside, outside) if inside and outside else None)
    return found


def draw(found: dict[str, Any]) -> Any:
    """Draw a panel for each number of edits: every prompt's activation over its threshold."""
    figure, axes = new_figure(3.8 * len(found["edits"]), 4.4, columns=len(found["edits"]))
    for axis, edits, groups, area in zip(
        axes[0], found["edits"], found["activations"], found["auc"], strict=True
    ):
        start = 0
        for colour, (name, values) in zip(COLOURS, groups.items(), strict=False):
            share = sum(value > 1 for value in values) / len(values)
            axis.scatter(
                range(start, start + len(values)),
                values,
                s=7,
                color=colour,
                label=f"{name}: {share:.0%}",
            )
            start += len(values) + max(1, len(values) // 20)
        axis.axhline(1.0, color="black", linewidth=1, linestyle="--")
        axis.set_yscale("log")
        axis.set_xticks([])
        axis.set_title(
            f"{edits:,} edits" + ("" if area is None else f", AUC {area:.3f}"), fontsize=11
        )
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02), "ncols": 2}
        axis.legend(**below, fontsize=8, title="above the threshold", title_fontsize=8)
    axes[0][0].set_ylabel("activation / threshold")
    return figure
