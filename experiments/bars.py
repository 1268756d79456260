"""Measures variants of a method on the same edits, and draws a group of bars for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errata.analyses.context import AnalysisContext, measured
from errata.bench.charts import new_figure
from errata.config import MethodConfig
from errata.measures import MEASURES


def beside(context: AnalysisContext, variants: Mapping[str, MethodConfig]) -> dict[str, Any]:
    """Measure free answers of each variant after all edits: label -> measure -> share."""
    return {label: said["generated"] for label, said in measured(context, variants).items()}


def draw(
    found: Mapping[str, Mapping[str, float | None]], names: Sequence[str] = MEASURES[:3]
) -> Any:
    """Draw three bars for each variant."""
    figure, axes = new_figure(8, 0.5 * len(found) + 1.2)
    axis = axes[0][0]
    for place, (name, colour) in enumerate(
        zip(names, ("#0072b2", "#e69f00", "#009e73"), strict=True)
    ):
        values = [said[name] or 0.0 for said in found.values()]
        where = [y + 0.27 * (place - 1) for y in range(len(found))]
        axis.barh(where, values, 0.25, color=colour, label=name.replace("_", " "))
        for y, value in zip(where, values, strict=True):
            axis.text(value + 0.01, y, f"{value:.2f}", va="center", fontsize=7)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.08)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
