"""Draws an accuracy matrix."""

from __future__ import annotations

import io
from collections.abc import Sequence

from errata.bench.charts import MAPS, new_figure


def heat_map(
    names: Sequence[str], before: Sequence[float], matrix: Sequence[Sequence[float]]
) -> bytes:
    """Return a PNG of the accuracies: a line for what was learned last, a column for each task.

    Raises:
        UsageError: matplotlib is not installed.
    """
    size = len(names)
    figure, axes = new_figure(2.6 + 0.7 * size, 2.2 + 0.5 * size)
    axis, rows = axes[0][0], [list(before), *map(list, matrix)]
    shown = axis.imshow(rows, cmap=MAPS, vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(size), names, rotation=40, ha="right")
    axis.set_yticks(range(size + 1), ["before", *(f"after {name}" for name in names)])
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            colour = "black" if value > 0.6 else "white"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axis.set_xlabel("asked")
    figure.colorbar(shown, ax=axis, label="accuracy")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, metadata={"Software": None})
    return drawn.getvalue()
