"""Shows errata in one go: ask the bundled model, edit it with WISE, ask again, beside fine-tuning.

    python scripts/demo.py [--edits 20] [--out out/demo]

The edited model is saved in the folder of `--out`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import errata
from errata.analyses.router import draw, side_by_side, view_router
from errata.atlas import make_cases
from errata.measures import MEANINGS, Evaluation

console = Console(width=150)


def bars() -> Progress:
    """A progress bar for anything over two seconds."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def edited(
    config: errata.MethodConfig, cases: list[errata.Case], name: str
) -> tuple[errata.EditModel, Evaluation]:
    """Stream the cases' edits into a fresh atlas; return it with its answers."""
    base, tokenizer = errata.load_base("atlas")
    model = errata.get_edit_model(base, config, tokenizer)
    with bars() as progress:
        writing = progress.add_task(f"{name}: editing, one by one", total=len(cases))
        errata.edit_stream(
            model,
            [case.edit for case in cases],
            save_every=1,
            check=False,
            progress=lambda what, done, total: progress.update(writing, completed=done),
        )
        asking = progress.add_task(f"{name}: asking the final model", total=None)
        found = errata.evaluate(
            model,
            cases,
            progress=lambda done, total: progress.update(asking, completed=done, total=total),
        )
    return model, found


def show_answers(cases: list[errata.Case], found: Evaluation) -> None:
    """Before and after, for every edit: its prompt, a rephrasing, an unrelated prompt."""
    table = Table(title=f"Answers before and after {len(cases)} edits (WISE)", show_lines=False)
    for column in (
        "edit's prompt",
        "wanted",
        "before",
        "after",
        "rephrased",
        "unrelated: before",
        "after",
    ):
        table.add_column(column, overflow="fold")
    for case in cases:
        mine = [answer for answer in found.answers if answer.edit_id == case.edit.id]
        own = next(a for a in mine if a.measure == "reliability")
        rephrased = next(a for a in mine if a.measure == "generalization")
        other = next(a for a in mine if a.measure == "locality" and a.kind == "unrelated")
        marks = [f"[{'green' if a.right else 'red'}]{a.after}[/]" for a in (own, rephrased, other)]
        table.add_row(
            own.prompt, own.wanted, own.before, marks[0], marks[1], other.before, marks[2]
        )
    console.print(table)


def show_figures(results: dict[str, Evaluation]) -> None:
    """WISE beside fine-tuning."""
    table = Table(
        title="On the final model, over all edits: free greedy answers (teacher-forced tokens)"
    )
    table.add_column("")
    table.add_column("what it means")
    for name in results:
        table.add_column(name, justify="right")
    for measure, meaning in MEANINGS.items():
        cells = [
            f"{r.generated[measure]:.2f} ({r.teacher_forced[measure]:.2f})"
            for r in results.values()
        ]
        table.add_row(measure, meaning, *cells)
    for kind in next(iter(results.values())).locality_by_kind:
        cells = [f"{r.locality_by_kind[kind]:.2f}" for r in results.values()]
        table.add_row(f"  locality, {kind}", "", *cells)
    console.print(table)


def show_life(model: errata.EditModel, out: Path) -> None:
    """Saved, reloaded, and one edit taken back."""
    model.save_pretrained(out / "my-errata", overwrite=True)
    again = errata.load(out / "my-errata")
    edit = again.edits[-1]
    size = sum(file.stat().st_size for file in (out / "my-errata").iterdir())
    console.print(
        f"saved to {out / 'my-errata'} ({size / 1e6:.1f} MB) and loaded again: "
        f"{len(again.edits)} edits"
    )
    console.print(f"  {edit.prompt} -> {again.ask([edit.prompt])[0]}")
    began = time.perf_counter()
    with console.status("undoing one edit: its shard is written anew without it"):
        again.undo(edit.id)
    console.print(f"undo {edit.id} ({time.perf_counter() - began:.1f} s)")
    console.print(
        f"  {edit.prompt} -> {again.ask([edit.prompt])[0]}   "
        f"(base: {again.ask_base([edit.prompt])[0]})"
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(2)
    began = time.perf_counter()
    cases = make_cases(options.edits, seed=0)
    wise, by_wise = edited(errata.WiseConfig(), cases, "WISE")
    _, by_tuning = edited(errata.FineTuningConfig(), cases, "FT-L")
    show_answers(cases, by_wise)
    show_figures({"WISE": by_wise, "FT-L": by_tuning})
    figure = options.out / "router.png"
    figure.parent.mkdir(parents=True, exist_ok=True)
    draw(side_by_side({len(cases): view_router(wise, cases)})).savefig(figure, dpi=140)
    show_life(wise, options.out)
    console.print(f"figure: {figure}    everything took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
