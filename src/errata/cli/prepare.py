"""`errata prepare MODEL -m METHOD --cases train.jsonl --out DIR`; `errata edit DIR` follows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.cli.opening import edits_of, open_to_edit
from errata.storage.locking import WAIT


def prepare(
    model: options.ModelToEdit,
    cases: Annotated[
        Path, typer.Option(help="JSON lines to learn from: edits with rephrases and locality.")
    ],
    out: options.OutFolder = None,
    method: Annotated[
        str | None,
        typer.Option("-m", "--method", help="One that needs training, see `errata methods`."),
    ] = None,
    settings: options.Settings = None,
    preset: options.Preset = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two saves.")] = 200,
    dtype: options.Dtype = "auto",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
) -> None:
    """Train a method that needs it, then edit the folder; run it again to resume training."""
    from errata.cases import read_numbered_cases
    from errata.cli.choices import Choices
    from errata.cli.reading import check_cases_fit
    from errata.config import check_device, check_dtype
    from errata.saving import is_artifact
    from errata.stream import prepare_and_save

    check_dtype(dtype)
    check_device(device_map)
    numbered = read_numbered_cases(cases)
    choices = Choices(method, settings or (), preset)
    if edits_of(model) is None and not (out and is_artifact(out)):
        choices.check_trainable()
    with open_to_edit(model, out, choices, dtype, device_map, wait) as (edited, folder):
        name, then = (
            edited.method.config.method,
            f"`errata edit {folder} --edits FILE` goes on from there",
        )
        if (
            edited.method.is_trained(edited.method.config)
            and edited.method.prepared
            and is_artifact(folder)
        ):
            screen.say(f"{name} in {folder} is trained already; {then}")
            return
        check_cases_fit(edited.lm, cases, numbered)
        examples = [case.example() for _, case in numbered]
        with screen.steps() as progress:
            made = prepare_and_save(
                edited, examples, folder, lambda steps, _: steps >= save_every, progress
            )
    screen.say(f"{name} trained with {len(examples)} cases, {made} steps, in {folder}; {then}")
