"""`errata ability MY-ERRATA --tasks hellaswag,arc_easy`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli import options, screen

if TYPE_CHECKING:
    from errata.bench.ability import Figure


def ability(
    model: options.Opened,
    tasks: Annotated[
        str, typer.Option(help="Tasks of lm-evaluation-harness, with commas between.")
    ],
    include_path: Annotated[
        Path | None, typer.Option(help="A folder with tasks of your own, as YAML.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task; all.")] = None,
    fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question; as the task says.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put questions into the chat template.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    out: Annotated[
        Path | None, typer.Option(help="A file for the figures and where they come from, as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Measure general ability with lm-evaluation-harness, with the edits and without them."""
    from errata.config import check_device, check_dtype

    check_dtype(dtype)
    check_device(device_map)
    with screen.busy("loading lm-evaluation-harness"):
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        from errata.bench.ability import ability as measure
    from errata.bench.provenance import provenance
    from errata.cli.opening import open_model
    from errata.cli.reading import write_text

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    choices: dict[str, Any] = {
        "limit": limit,
        "fewshot": fewshot,
        "chat": chat,
        "batch_size": batch_size,
    }
    opened = open_model(model, dtype, device_map)
    with contextlib.redirect_stdout(sys.stderr):  # the harness prints now and then
        figures = measure(opened, names, include_path=include_path, **choices)
    made = {**provenance(), "harness": version("lm-eval")}
    document = {
        "model": model,
        **choices,
        "made": made,
        "figures": [dataclasses.asdict(f) for f in figures],
    }
    if as_json:
        screen.print_json(document)
    else:
        show(figures)
    if out:
        write_text(out, json.dumps(document, ensure_ascii=False, indent=1) + "\n")


def show(figures: list[Figure]) -> None:
    """Print a line for each metric; a model without edits has one column of values."""
    edited = any(figure.edited is not None for figure in figures)
    shown = screen.table(
        "task", "metric", "base", *(("edited", "difference", "moved") if edited else ())
    )
    for figure in figures:
        cells = [figure.task, figure.metric, within(figure.base, figure.base_error)]
        if edited:
            moved = "-" if figure.moved is None else f"{figure.moved} of {figure.questions}"
            cells += [
                within(figure.edited, figure.edited_error),
                digits(figure.difference, "+"),
                moved,
            ]
        shown.add_row(*map(screen.plain, cells))
    screen.show(shown)


def within(value: float | None, error: float | None) -> str:
    """Return a value, and its standard error where there is one."""
    return digits(value) + ("" if error is None else f" ± {digits(error)}")


def digits(value: float | None, sign: str = "") -> str:
    """Format a value as a share or as a perplexity."""
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" if abs(value) < 1000 else f"{value:{sign}.4g}"
