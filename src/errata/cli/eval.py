"""`errata eval MY-ERRATA --cases cases.jsonl`."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.cli.forgetting import measured, show_forgetting
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
    forget: Annotated[
        Path | None, typer.Option(help="Instead of cases: what was to be forgotten (erase.md).")
    ] = None,
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
    """Compare the edited model's answers with the targets and with its base model; or, with
    --forget, what a model still knows of what it was to forget.
    """
    import errata
    from errata.cases import read_numbered_cases
    from errata.cli.reading import check_cases_fit, write_text
    from errata.measures import MEANINGS
    from errata.probes import KINDS, make_probes

    if forget is not None and cases is None:
        files = forget, retain, others
        known = measured(str(folder), files, retrained, tamper, dtype, device_map)
        (screen.print_json if as_json else show_forgetting)(known)
        return
    if cases is None or forget is not None:
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
    shown = screen.table(f"{found.edits} cases", "generated", "teacher-forced", "it means")
    for measure, meaning in MEANINGS.items():
        figures = (found.generated[measure], found.teacher_forced[measure])
        shown.add_row(measure, *map(screen.figure, figures), meaning)
    for kind, share in found.locality_by_kind.items():
        shown.add_row(f"  locality, {kind}", screen.figure(share), "", "")
    screen.show(shown)
    if not found.probes:
        return
    contains, exact = (found.probes[score] for score in ("contains", "exact"))
    shown = screen.table("probes", "contains", "exact", "right is")
    for kind in contains:
        right = KINDS[kind].right if kind in KINDS else "over the kinds"
        shown.add_row(kind, screen.figure(contains[kind]), screen.figure(exact[kind]), right)
    screen.show(shown)
    if found.probes_left_out:
        counted = ", ".join(f"{kind} of {edits}" for kind, edits in found.probes_left_out.items())
        screen.complain(f"edits without what a probe needs, left out: {counted}.")
