"""`errata eval MY-ERRATA --cases cases.jsonl`."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.cli.eval_report import show_evaluation
from errata.cli.forgetting import show_known
from errata.cli.opening import open_artifact
from errata.errors import UsageError


def eval(
    folder: options.Folder,
    cases: Annotated[
        Path | None, typer.Option(help="JSON lines: edits with rephrases, locality, portability.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="A file for every single answer, as JSON lines.")
    ] = None,
    probes: options.Probes = "",
    forget: Annotated[Path | None, typer.Option(help="What was to be forgotten.")] = None,
    retain: Annotated[Path | None, typer.Option(help="What was to be kept.")] = None,
    others: Annotated[
        Path | None, typer.Option(help="What no model was trained on, for attacks.")
    ] = None,
    retrained: Annotated[
        str | None, typer.Option(help="A model trained without what was to be forgotten.")
    ] = None,
    tamper: Annotated[
        bool, typer.Option("--tamper", help="Try to bring back what was forgotten.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 32,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare answers with targets and base model; with --forget, say what is still known."""
    import errata
    from errata.cases import read_numbered_cases
    from errata.cli.reading import check_cases_fit, write_text
    from errata.probes import make_probes

    if cases is None:
        files = forget, retain, others
        show_known(folder, files, retrained, tamper, dtype, device_map, as_json)
        return
    if forget is not None:
        raise UsageError("give either --cases, or --forget and --retain.")
    numbered = read_numbered_cases(cases)
    judged = [case for _, case in numbered]
    asked = make_probes(judged, options.names(probes))
    model = open_artifact(folder, dtype, device_map)
    check_cases_fit(model.lm, cases, numbered)
    with screen.steps() as progress:
        found = errata.evaluate(
            model, judged, batch_size, progress=partial(progress, "asking"), probes=asked
        )
    if answers:
        each = (json.dumps(dataclasses.asdict(a), ensure_ascii=False) for a in found.answers)
        write_text(answers, "".join(f"{line}\n" for line in each))
    if as_json:
        generation = next(iter(model.origin.generations.values()))
        screen.print_json({**found.to_dict(), "generation": generation})
        return
    show_evaluation(found)
