"""`errata detox MODEL --pairs pairs.jsonl --out polite`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import checkpoint, options, screen
from errata.storage.locking import WAIT

RECORD = "detox.json"
"""The file that says what was asked for and done."""


def detox(
    model: options.ModelArgument,
    pairs: Annotated[
        Path, typer.Option(help="JSON lines: prompt, safe, unsafe; or SafeEdit's file.")
    ],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="A new folder, for the model that answers safely.")
    ],
    method: Annotated[
        str, typer.Option("-m", "--method", help="dinm, negation, dpo, or steering, the control.")
    ] = "dinm",
    keep: Annotated[
        Path | None, typer.Option(help="JSON lines to keep; else what the model writes itself.")
    ] = None,
    settings: options.Settings = None,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
) -> None:
    """Train a model to answer safely where it answered otherwise; run it again to resume."""
    from errata.cli.choices import Choices
    from errata.config import check_device, check_dtype
    from errata.lm import LM
    from errata.unlearning import config_of, read_passages
    from errata.unlearning.detox import DETOX, detoxify
    from errata.unlearning.pairs import read_response_pairs
    from errata.unlearning.training import STATE

    check_dtype(dtype)
    check_device(device_map)
    config = config_of(method, Choices(None, settings or ()).given, DETOX)
    given, kept = read_response_pairs(pairs), [] if keep is None else read_passages(keep)
    with checkpoint.new_folder(out, STATE, wait) as folder:
        base, tokenizer = checkpoint.open_base(model, "detoxification", dtype, device_map)
        lm = LM(base, tokenizer, config.chat_template, config.end_token)
        with screen.steps() as progress:
            changed, record = detoxify(lm, method, config, given, kept, folder, progress)
        checkpoint.save(changed, tokenizer, folder, RECORD, record)
    screen.say(
        f"{len(given)} pairs learned by {method} in {record['steps']} steps, "
        f"{record['seconds']:.0f} s; the model is in {folder}, which says so in {RECORD}"
    )
