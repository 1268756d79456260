"""The router's activations: edits, rephrasings and unrelated prompts, and the threshold between them.

After figure 3 of WISE (arXiv 2405.14768). It draws what a `SideMemory` sees and judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from errata.cases import Case
from errata.errors import ConfigError, UsageError
from errata.model import EditModel
from errata.patches import SideMemory

COLOURS = ("#1b7837", "#7fbf7b", "#762a83", "#bababa", "#fdb863")


@dataclass(frozen=True)
class RouterView:
    """How far each prompt's largest activation is from the threshold of the memory that would take it.

    Attributes:
        activations: group name -> activation / threshold per prompt; above 1 the side memory speaks.
    """

    activations: dict[str, list[float]]

    def share_above(self, group: str) -> float:
        """Share of a group's prompts that go to a side memory."""
        values = self.activations[group]
        return sum(value > 1 for value in values) / len(values)


def view_router(model: EditModel, cases: Sequence[Case]) -> RouterView:
    """Activations of the cases' prompts, by group.

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
    for kind, name in (("unrelated", "unrelated"), ("neighbour", "neighbours"), ("same_subject", "same subject")):
        groups[name] = [probe.prompt for case in cases for probe in case.locality if probe.kind == kind]
    thresholds = [memory.threshold for memory in patch.memories]
    found = {}
    for name, prompts in groups.items():
        if prompts:
            best = patch.probe(model.lm, prompts).max(0)
            chosen = [thresholds[j] for j in best.indices.tolist()]
            found[name] = [value / limit for value, limit in zip(best.values.tolist(), chosen, strict=True)]
    return RouterView(found)


def draw_router(view: RouterView, path: str | Path, title: str = "Router activations") -> Path:
    """Draw the view into a PNG and return its path.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("figures need matplotlib: pip install 'errata[figures]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    start = 0
    for colour, (name, values) in zip(COLOURS, view.activations.items(), strict=False):
        label = f"{name}: {view.share_above(name):.0%} to the side memory"
        axes.scatter(range(start, start + len(values)), values, s=9, color=colour, label=label)
        start += len(values) + 5
    axes.axhline(1.0, color="black", linewidth=1, linestyle="--", label="threshold")
    axes.set(title=title, xlabel="prompt", ylabel="activation / threshold", yscale="log")
    axes.set_xticks([])
    axes.legend(loc="lower left", fontsize=8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
