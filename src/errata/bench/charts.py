"""Draws the report's figures as SVG, in colours that all eyes tell apart."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from errata.bench.results import Measured, retentions
from errata.cases import LOCALITY_KINDS
from errata.errors import UsageError

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
"""After Okabe and Ito; each goes with a marker of its own."""
MARKERS = "osD^vPX*"
REST = "#b8b8b8"
MAPS = "cividis"


def over_time(measured: Sequence[Measured], metrics: Sequence[str]) -> str | None:
    """Draw each share that counts over T, with intervals; None where there is nothing to draw.

    With more runs than colours, those with the best mean at the end have them, and the others are
    grey.
    """
    shares = [
        metric
        for metric in metrics
        if any(each.result.figures and each.figure(metric) for each in measured)
    ]
    names = list(dict.fromkeys(each.label for each in measured if each.result.figures))
    edits = sorted({each.result.edits for each in measured if each.result.figures})
    if not shares or not names:
        return None
    by = {(each.label, each.result.edits): each for each in measured if each.result.figures}
    ranked = sorted(names, key=lambda name: -_final(by, name, edits, shares))
    looks = {name: (COLOURS[i], MARKERS[i]) for i, name in enumerate(ranked[: len(COLOURS)])}
    figure, axes = new_figure(3.3 * len(shares) + 1.9, 3.4, columns=len(shares))
    for axis, metric in zip(axes[0], shares, strict=True):
        for name in reversed(ranked):
            colour, marker = looks.get(name, (REST, "."))
            points = [
                (t, found)
                for t in edits
                if (name, t) in by and (found := by[name, t].figure(metric))
            ]
            if points:
                values = [found.value for _, found in points]
                spread = [
                    [f.value - f.low for _, f in points],
                    [f.high - f.value for _, f in points],
                ]
                axis.errorbar(
                    [t for t, _ in points], values, yerr=spread, color=colour, marker=marker,
                    markersize=5, linewidth=1.4, elinewidth=0.8, capsize=2, label=name,
                    zorder=1 if name not in looks else 3,
                )  # fmt: skip
        axis.set_title(metric, fontsize=11)
        if len(edits) > 1:
            axis.set_xscale("log")
        axis.set_xticks(edits, [f"{t:,}" for t in edits])
        axis.minorticks_off()
        axis.set_xlabel("edits")
        axis.set_ylim(-0.03, 1.03)
        axis.grid(color="#e5e5e5", linewidth=0.7)
    handles, labels = axes[0][0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: ranked.index(labels[i]))
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside right upper",
        fontsize=8,
        frameon=False,
    )
    return _svg(figure)


def _final(
    by: dict[tuple[str, int], Measured], name: str, edits: Sequence[int], shares: Sequence[str]
) -> float:
    """Return the mean of the metrics after the most edits of a run."""
    last = by[name, max(t for t in edits if (name, t) in by)]
    found = [figure.value for metric in shares if (figure := last.figure(metric))]
    return sum(found) / len(found) if found else 0.0


def locality_map(measured: Sequence[Measured]) -> str | None:
    """Draw locality of each run by kind, after the most edits; None for one kind or none."""
    last = max((each.result.edits for each in measured if each.result.figures), default=0)
    done = [each for each in measured if each.result.figures and each.result.edits == last]
    values = [
        (each, each.result.figures["locality_by_kind"]) for each in done if each.result.figures
    ]
    kinds = [kind for kind in LOCALITY_KINDS if any(found[kind] is not None for _, found in values)]
    if len(kinds) < 2:
        return None
    grid = [[found[kind] for kind in kinds] for _, found in values]
    figure, axes = new_figure(1.4 * len(kinds) + 2.2, 0.3 * len(grid) + 1.0)
    _heat(
        axes[0][0],
        grid,
        [each.label for each, _ in values],
        [kind.replace("_", " ") for kind in kinds],
    )
    axes[0][0].set_title(f"locality after {last:,} edits", fontsize=11)
    return _svg(figure)


def retention_maps(measured: Sequence[Measured], most: int = 12) -> str | None:
    """Draw cohorts and checkpoints of the first `most` runs; None with one checkpoint only."""
    found = list(retentions(measured).items())[:most]
    if not found:
        return None
    columns = min(4, len(found))
    lines = -(-len(found) // columns)
    figure, axes = new_figure(2.9 * columns, 2.5 * lines, columns, lines)
    for place in range(lines * columns):
        axis = axes[place // columns][place % columns]
        if place >= len(found):
            axis.set_visible(False)
            continue
        name, kept = found[place]
        starts = [1, *(last + 1 for last in kept.checkpoints[:-1])]
        labels = [f"{a:,}–{b:,}" for a, b in zip(starts, kept.checkpoints, strict=True)]
        _heat(
            axis, [list(row) for row in kept.accuracy], labels, [f"{t:,}" for t in kept.checkpoints]
        )
        axis.set_title(name, fontsize=11)
        axis.set_xlabel("at", fontsize=8)
        axis.set_ylabel("edits", fontsize=8)
    return _svg(figure)


def _heat(
    axis: Any, grid: Sequence[Sequence[float | None]], down: Sequence[str], across: Sequence[str]
) -> None:
    """Draw shares as colours, with their numbers."""
    axis.imshow(
        [[float("nan") if v is None else v for v in row] for row in grid],
        vmin=0,
        vmax=1,
        cmap=MAPS,
        aspect="auto",
    )
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            if value is not None:
                axis.text(
                    x,
                    y,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if value > 0.55 else "white",
                )
    axis.set_xticks(range(len(across)), across, fontsize=8)
    axis.set_yticks(range(len(down)), down, fontsize=8)
    axis.tick_params(length=0)


def new_figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """Make a figure; return it and its axes [rows][columns].

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("figures need matplotlib: pip install 'errata[figures]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _svg(figure: Any) -> str:
    """Return the figure as SVG, to stand in a page; the same for the same data."""
    import matplotlib

    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "errata"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
