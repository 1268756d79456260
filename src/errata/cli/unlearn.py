"""`errata unlearn MODEL -m npo --forget f.jsonl --retain r.jsonl --out forgot`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import options, screen
from errata.errors import StorageError, UsageError

RECORD = "unlearning.json"
"""The file that says what was asked for and done."""


def unlearn(
    model: options.Opened,
    forget: Annotated[
        Path, typer.Option(help="JSON lines to forget: question and answer, or text.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder, for the model that has forgotten.")],
    method: Annotated[
        str,
        typer.Option(
            "-m",
            "--method",
            help="ascent, graddiff, npo, simnpo, idk, dpo, rmu, undial, wga or negation.",
        ),
    ] = "npo",
    retain: Annotated[
        Path | None, typer.Option(help="JSON lines to keep, of the same kind.")
    ] = None,
    settings: options.Settings = None,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
) -> None:
    """Train a model to forget what it was trained on; run it again to resume."""
    from errata.cli.choices import Choices
    from errata.cli.opening import edits_of, load_base
    from errata.config import check_device, check_dtype
    from errata.lm import LM
    from errata.unlearning import Unlearning, config_of, read_passages

    check_dtype(dtype)
    check_device(device_map)
    config = config_of(method, Choices(None, settings or ()).given)
    gone, kept = read_passages(forget), [] if retain is None else read_passages(retain)
    if (out / RECORD).exists() or (out / "config.json").exists():
        raise UsageError(f"{out} has a model in it already; give a new folder.")
    if edits_of(model) is not None:
        raise UsageError(
            f"{model} is a folder of edits: unlearning trains a model's weights; give its base "
            "model, or `errata export ... --to weights` first."
        )
    base, tokenizer = load_base(model, dtype, device_map)
    begun = time.monotonic()
    lm = LM(base, tokenizer, config.chat_template, config.end_token)
    unlearning = Unlearning(lm, method, config, gone, kept)
    with screen.steps() as progress:
        forgot = unlearning.run(out, progress)
    try:
        forgot.save_pretrained(out)
        tokenizer.save_pretrained(out)
        record = unlearning.record(time.monotonic() - begun)
        (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror}).") from error
    screen.say(
        f"{len(gone)} passages unlearned by {method} in {record['steps']} steps, "
        f"{record['seconds']:.0f} s; the model is in {out}, which says so in {RECORD}"
    )
