"""`errata debias MODEL --pairs pairs.jsonl --out fair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import checkpoint, options, screen
from errata.storage.locking import WAIT

RECORD = "debias.json"
"""The file that says what was asked for and done."""


def debias(
    model: options.ModelArgument,
    pairs: Annotated[
        Path,
        typer.Option(help="JSON lines, see docs/erase.md; or StereoSet's or CrowS-Pairs' file."),
    ],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="A new folder, for the model without the prejudice.")
    ],
    method: Annotated[str, typer.Option("-m", "--method", help="equalise or leace.")] = "equalise",
    keep: Annotated[
        Path | None, typer.Option(help="JSON lines to keep; else what the model writes itself.")
    ] = None,
    settings: options.Settings = None,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
) -> None:
    """Make a prejudice and its opposite alike to a model; run it again to resume."""
    from errata.cli.choices import Choices
    from errata.config import check_device, check_dtype
    from errata.lm import LM
    from errata.unlearning import bias, config_of, read_passages
    from errata.unlearning.pairs import read_sentence_pairs
    from errata.unlearning.training import STATE

    check_dtype(dtype)
    check_device(device_map)
    config = config_of(method, Choices(None, settings or ()).given, bias.DEBIAS)
    given, kept = read_sentence_pairs(pairs), [] if keep is None else read_passages(keep)
    with checkpoint.new_folder(out, STATE, wait) as folder:
        base, tokenizer = checkpoint.open_base(model, "debiasing", dtype, device_map)
        lm = LM(base, tokenizer, config.chat_template, config.end_token)
        with screen.steps() as progress:
            changed, record = bias.debias(lm, method, config, given, kept, folder, progress)
        checkpoint.save(changed, tokenizer, folder, RECORD, record)
    screen.say(
        f"{len(given)} pairs learned by {method} in {record['steps']} steps, "
        f"{record['seconds']:.0f} s; the model is in {folder}, which says so in {RECORD}"
    )
