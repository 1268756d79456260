"""`errata unlearn MODEL -m npo --forget f.jsonl --retain r.jsonl --out forgot`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import checkpoint, options, screen
from errata.storage.locking import WAIT

RECORD = "unlearning.json"
"""The file that says what was asked for and done."""


def unlearn(
    model: options.Opened,
    forget: Annotated[
        Path, typer.Option(help="JSON lines to forget: question and answer, or text.")
    ],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="A new folder, for the model that has forgotten.")
    ],
    method: Annotated[
        str,
        typer.Option(
            "-m",
            "--method",
            help="ascent, graddiff, npo, simnpo, idk, dpo, rmu, undial, wga, negation or "
            "subnetwork.",
        ),
    ] = "npo",
    retain: Annotated[
        Path | None, typer.Option(help="JSON lines to keep, of the same kind.")
    ] = None,
    settings: options.Settings = None,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
) -> None:
    """Train a model to forget what it was trained on; run it again to resume."""
    from errata.cli.choices import Choices
    from errata.config import check_device, check_dtype
    from errata.lm import LM
    from errata.unlearning import Unlearning, config_of, read_passages
    from errata.unlearning.training import STATE

    check_dtype(dtype)
    check_device(device_map)
    config = config_of(method, Choices(None, settings or ()).given)
    gone, kept = read_passages(forget), [] if retain is None else read_passages(retain)
    with checkpoint.new_folder(out, STATE, wait) as folder:
        base, tokenizer = checkpoint.open_base(model, "unlearning", dtype, device_map)
        begun = time.monotonic()
        lm = LM(base, tokenizer, config.chat_template, config.end_token)
        unlearning = Unlearning(lm, method, config, gone, kept)
        with screen.steps() as progress:
            forgot = unlearning.run(folder, progress)
        record = unlearning.record(time.monotonic() - begun)
        checkpoint.save(forgot, tokenizer, folder, RECORD, record)
    zero = record.get("zero")
    screen.say(
        f"{len(gone)} passages unlearned by {method} in {record['steps']} steps, "
        f"{record['seconds']:.0f} s; the model is in {folder}, which says so in {RECORD}"
        + (f"; {zero['weights']:,} of {zero['of']:,} weights are zero" if zero else "")
    )
