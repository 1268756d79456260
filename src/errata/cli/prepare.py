"""`errata prepare MODEL -m METHOD --cases train.jsonl --out DIR`; `errata edit DIR` then goes on
from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import screen
from errata.cli.opening import OutFolder, Wait, open_to_edit
from errata.storage.locking import WAIT


def prepare(
    model: Annotated[
        str,
        typer.Argument(
            help="A hub name, a local folder, the bundled 'atlas', or a folder begun before."
        ),
    ],
    cases: Annotated[
        Path, typer.Option(help="JSON lines to learn from: edits with rephrases and locality.")
    ],
    out: OutFolder = None,
    method: Annotated[
        str | None,
        typer.Option("-m", "--method", help="One that needs training, see `errata methods`."),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Published settings: a name, or auto.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two saves.")] = 200,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto is as saved.")
    ] = "auto",
    device_map: Annotated[
        str | None, typer.Option(help="As in transformers, e.g. auto or cuda.")
    ] = None,
    wait: Wait = WAIT,
) -> None:
    """Train a method that needs it, saving as it goes; run it again to go on where it stopped. Then
    edit the folder.
    """
    from errata.cases import read_numbered_cases
    from errata.cli.choices import Choices
    from errata.cli.reading import check_cases_fit
    from errata.cli.training import train
    from errata.config import check_device, check_dtype
    from errata.saving import is_artifact

    check_dtype(dtype)
    check_device(device_map)
    numbered = read_numbered_cases(cases)
    wanted = [case for _, case in numbered]
    chosen = Choices(method, options or (), preset)
    if not any(is_artifact(place) for place in (model, out) if place):
        chosen.check_trainable()
    with open_to_edit(model, out, chosen, dtype, device_map, wait) as (edited, folder):
        name, then = (
            edited.method.config.method,
            f"`errata edit {folder} --edits FILE` goes on from there",
        )
        if edited.method.needs_training and edited.method.prepared and is_artifact(folder):
            screen.say(f"{name} in {folder} is trained already; {then}")
            return
        check_cases_fit(edited.lm, cases, numbered)
        made = train(edited, [case.example() for case in wanted], folder, save_every)
    screen.say(f"{name} trained with {len(wanted)} cases, {made} steps, in {folder}; {then}")
