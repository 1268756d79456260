"""`errata distill MY-ERRATA STUDENT --out FOLDER`: a plain model learns the corrections."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import checkpoint, options, screen
from errata.cli.opening import open_artifact
from errata.cli.reading import read_prompts, rewordings_of
from errata.storage.locking import WAIT

RECORD = "distillation.json"
"""The file that says what was asked for and done."""


def distill(
    teacher: options.Folder,
    student: options.ModelArgument,
    out: Annotated[str, typer.Option(metavar="DIR", help="A new folder, for the student.")],
    cases: Annotated[
        Path | None,
        typer.Option(help="JSON lines: the edits with their rephrases, and locality to keep."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Prompts, one a line, whose answers must not change.")
    ] = None,
    settings: options.Settings = None,
    dtype: options.Dtype = "float32",
    device_map: options.DeviceMap = None,
    wait: options.Wait = WAIT,
) -> None:
    """Teach a model what an edited one was corrected to, and nothing else; run again to resume."""
    from errata.cases import read_cases
    from errata.cli.choices import Choices
    from errata.config import check_device, check_dtype
    from errata.edit import same_answer
    from errata.lm import LM
    from errata.transfer import Distillation, DistillationConfig
    from errata.transfer.distillation import STATE

    check_dtype(dtype)
    check_device(device_map)
    config = DistillationConfig.from_dict(Choices(None, settings or ()).given)
    stay = [] if keep is None else read_prompts(keep)
    given = [] if cases is None else read_cases(cases)
    with checkpoint.new_folder(out, STATE, wait) as folder:
        edited = open_artifact(teacher, dtype, device_map)
        base, tokenizer = checkpoint.open_base(student, "distillation", dtype, device_map)
        rewordings = rewordings_of(edited.edits, given)
        stay += [probe.prompt for case in given for probe in case.locality]
        begun = time.monotonic()
        lm = LM(base, tokenizer, config.chat_template, config.end_token)
        with screen.steps() as progress:
            run = Distillation(edited, lm, config, rewordings, stay, progress)
            learned = run.run(folder, progress)
            record = run.record(time.monotonic() - begun)
            progress("asking the student", 0, 0)
            answers = LM(learned, tokenizer, config.chat_template).generate(
                [edit.prompt for edit in edited.edits]
            )
        said = sum(
            same_answer(answer, edit.target)
            for answer, edit in zip(answers, edited.edits, strict=True)
        )
        checkpoint.save(learned, tokenizer, folder, RECORD, {**record, "said": said})
    untaught = f" ({run.unsaid} prompts the teacher does not answer so)" if run.unsaid else ""
    screen.say(
        f"{said} of {len(answers)} edits are answered as wanted by the student, after "
        f"{record['steps']} steps on {len(run.lessons)} prompts{untaught}, "
        f"{record['seconds']:.0f} s; the model is in {folder}, which says so in {RECORD}"
    )
