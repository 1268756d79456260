"""Variants of one method side by side: what `merges` and `ablations` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.analyses.given import AnalysisContext, measured
from errata.bench.charts import new_figure
from errata.config import MethodConfig

MEASURES = ("reliability", "generalization", "locality")


def beside(context: AnalysisContext, variants: Mapping[str, MethodConfig]) -> dict[str, Any]:
    """Free answers after all edits, for each variant: label -> measure -> share."""
    return {label: said["generated"] for label, said in measured(context, variants).items()}


def draw(
    found: Mapping[str, Mapping[str, float | None]], names: tuple[str, str, str] = MEASURES
) -> Any:
    """Three bars for each variant, of so many figures."""
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
