"""Measures how long Memoria's engrams live and whether they come to mind, on atlas; draws it.

    python benchmarks/trained_memories.py --methods memoria --folder FOLDER     # trains it, once
    python benchmarks/engrams.py FOLDER [--seed 5] [--record] [--picture docs/images/engrams.svg]

A hundred edits are written one after the other. Of each edit, after so many more: the share of its
engrams that live, and whether its own prompt brings one of them to mind. The picture has the
lifespan that is left to each edit's engrams, after each writing. One thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import results
import torch

import errata
from errata import EditModel
from errata.atlas import make_cases

EDITS = 100
LATER = (0, 1, 5, 20, 50)
FIGURES = ("live", "come to mind")


def life(model: EditModel, edits: Sequence[errata.Edit]) -> tuple[list[dict[str, Any]], Any]:
    """Write edits one by one; return the table's rows, and lifespans (edits, writings)."""
    method = model.method
    count = method.config.engrams
    found: dict[int, list[tuple[float, ...]]] = {later: [] for later in LATER}
    left = torch.zeros(len(edits), len(edits))
    for written, edit in enumerate(edits):
        model.edit([edit], check=False)
        lifespans = method.memory.lifespans
        for place in range(written + 1):
            own = range(place * count, (place + 1) * count)
            left[place, written] = fmean(lifespans.get(number, 0.0) for number in own)
            if (later := written - place) in found:
                ids = tuple(model.lm.encode_prompt(edits[place].prompt))
                with model.disable_edits():
                    (read,) = method.patch.chosen(model.lm, [ids])
                alive = fmean(number in lifespans for number in own)
                found[later].append((alive, float(any(int(name) in own for name in read))))
    rows: list[dict[str, Any]] = [
        {"later edits": str(later)} | {n: fmean(r[i] for r in each) for i, n in enumerate(FIGURES)}
        for later, each in found.items()
    ]
    return rows, left


def draw(left: torch.Tensor, first: float, file: Path) -> None:
    """Draw lifespans (edits, writings)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "errata", "font.size": 9})
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.2, 4.2), layout="constrained")
    shown = left.masked_fill(left <= 0, float("nan")).tolist()
    most = max(first, float(left.quantile(0.99)))
    image = axis.imshow(shown, origin="lower", cmap="cividis", vmin=0, vmax=most, aspect="auto")
    axis.set(xlabel="edits written", ylabel="edit whose engrams they are")
    figure.colorbar(image, label="writings that they still outlive, mean", extend="max")
    file.parent.mkdir(exist_ok=True, parents=True)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base, tokenizer = errata.load_base("atlas", "float32")
    model = EditModel.from_pretrained(base, options.folder / "memoria", tokenizer)
    rows, left = life(model, [case.edit for case in make_cases(EDITS, seed=options.seed)])
    for row in rows:
        print(row)
    if options.record:
        command = f"python benchmarks/engrams.py FOLDER --seed {options.seed} --record"
        results.write("memory-engrams", [{**row, "command": command} for row in rows])
    if options.picture:
        draw(left, float(model.method.config.lifespan), options.picture)


if __name__ == "__main__":
    main()
