"""`errata certify FOLDER --forget f.jsonl --retain r.jsonl --out certificate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.cli.forgetting import measured
from errata.cli.reading import write_text
from errata.errors import UsageError


def certify(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="A model's folder, or one of edits.")
    ],
    forget: Annotated[Path, typer.Option(help="JSON lines: what was to be forgotten.")],
    retain: Annotated[Path, typer.Option(help="JSON lines: what was to be kept.")],
    out: Annotated[Path, typer.Option(help="A folder, for certificate.json and .html.")],
    others: Annotated[
        Path | None, typer.Option(help="What no model was trained on, for attacks.")
    ] = None,
    retrained: Annotated[
        str | None, typer.Option(help="A model trained without what was to be forgotten.")
    ] = None,
    tamper: Annotated[
        bool, typer.Option("--tamper", help="Try to bring back what was forgotten.")
    ] = False,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
) -> None:
    """Write what was asked for, done and measured of a model that was to forget, with hashes."""
    from errata.cli.opening import edits_of, read_edits
    from errata.unlearning import read_passages
    from errata.unlearning.certificate import certificate, page

    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is no folder: a certificate is of files, by their hashes.")
    files = forget, retain, others
    found = measured(folder, files, retrained, tamper, dtype, device_map)
    held = [] if edits_of(folder) is None else read_edits(folder).edits
    edits = [edit.to_dict() for edit in held if edit.operation == "erase"]
    made = certificate(Path(folder), read_passages(forget), read_passages(retain), found, edits)
    write_text(out / "certificate.json", json.dumps(made, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "certificate.html", page(made))
    for statement in made["statements"]:
        screen.say(statement)
    left = len(made["not_measured"])
    screen.say(f"{out / 'certificate.html'} says so, and {left} things that were not measured")
