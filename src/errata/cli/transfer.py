"""`errata transfer TEACHER STUDENT --data FILE --out FOLDER`: training that starts at a part."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import checkpoint, options, screen
from errata.cli.opening import load_base
from errata.storage.locking import WAIT

RECORD = "transfer.json"
"""The file that says what was asked for and done."""


def transfer(
    teacher: options.ModelArgument,
    student: options.ModelArgument,
    data: Annotated[
        Path, typer.Option(help="JSON lines of the task: question and answer, or text.")
    ],
    out: Annotated[str, typer.Option(metavar="DIR", help="A new folder, for the student.")],
    settings: options.Settings = None,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
) -> None:
    """Train a small model, starting from parts of a large one's matrices; run again to resume."""
    from errata.cli.choices import Choices
    from errata.config import check_device, check_dtype
    from errata.lm import LM
    from errata.transfer import ParametricTransfer, ParametricTransferConfig
    from errata.transfer.parametric import STATE
    from errata.unlearning import read_passages

    check_dtype(dtype)
    check_device(device_map)
    config = ParametricTransferConfig.from_dict(Choices(None, settings or ()).given)
    passages = read_passages(data)
    with checkpoint.new_folder(out, STATE, wait) as folder:
        large = LM(*load_base(teacher, dtype, device_map))
        base, tokenizer = checkpoint.open_base(student, "training", dtype, device_map)
        begun = time.monotonic()
        lm = LM(base, tokenizer, config.chat_template, config.end_token)
        run = ParametricTransfer(large, lm, config, passages)
        with screen.steps() as progress:
            learned = run.run(folder, progress)
        record = run.record(time.monotonic() - begun)
        checkpoint.save(learned, tokenizer, folder, RECORD, record)
    parts = f"{len(run.taken)} of {len(run.taken) + len(run.left)} matrices begin at a part of "
    how = f"{parts}the teacher's" if run.taken else "nothing is taken of the teacher"
    screen.say(
        f"{len(passages)} passages learned, {how}, {record['seconds']:.0f} s; the model is in "
        f"{folder}, which says so in {RECORD}"
    )
