"""The command line of all experiments: `python experiments/NAME.py --edits 100 --set steps=20`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from errata.analyses.context import AnalysisContext, keep
from errata.bench.plan import Plan, load_plan
from errata.errors import ErrataError


def run(
    find: Callable[[AnalysisContext], Any],
    draw: Callable[[Any], Any],
    arguments: Sequence[str] | None = None,
) -> None:
    """Run an experiment, and keep its numbers as NAME.json and its figure as NAME.png.

    Args:
        find: measures; its file gives the experiment's name and description.
        draw: makes the figure of what was measured.
        arguments: those of the command line by default.
    """
    name = Path(find.__code__.co_filename).stem
    options = _parser(name, sys.modules[find.__module__].__doc__).parse_args(arguments)
    try:
        context = _context(options, Path(options.out or f"out/{name}"))
        found = find(context)
        for path in keep(context, name, found, draw(found)):
            print(path)
    except ErrataError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _parser(name: str, description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="atlas", help="a hub name, a local folder, or atlas")
    parser.add_argument("--edits", type=int, default=100, help="length of the stream")
    parser.add_argument(
        "--task", default="atlas", help="where the edits come from, see `errata tasks`"
    )
    parser.add_argument("--data", type=Path, help="the task's file, or a folder that has it")
    parser.add_argument("--method", "-m", help="for experiments with any method")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the results; out/NAME")
    return parser


def _context(options: argparse.Namespace, folder: Path) -> AnalysisContext:
    plan = Plan(options.task, options.model, methods=(), edits=options.edits, data=options.data)
    stream = load_plan(plan).stream
    settings = dict(option.split("=", 1) for option in options.set)
    return AnalysisContext(
        options.model,
        stream.cases[: options.edits],
        folder,
        options.method,
        settings,
        progress=_progress,
    )


def _progress(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", end="\r", file=sys.stderr, flush=True)
