"""`write`: puts what a run learned into a folder, whole or not at all."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from errata.continual.charts import heat_map
from errata.continual.run import STATE, Continual
from errata.errors import UsageError
from errata.storage.checkpoints import save_checkpoint
from errata.storage.files import storage_error, write_whole

RECORD, MAP = "learn.json", "accuracy.png"
"""What was asked for and found; the accuracies as a heat map."""


def write(run: Continual, folder: Path) -> list[Path]:
    """Write the model, the record of the run and the heat map; return the folders of models.

    There is one model, in the folder itself; where tasks have weights of their own, one for each,
    in a folder of its name. A model is written beside, then moved into place; the record comes
    last. Where matplotlib is not installed there is no heat map. Where the model is no ordinary one
    there is none: what was learned stays in the state, from which `Continual` goes on.

    Raises:
        StorageError: the folder cannot be written.
    """
    places: list[tuple[Path, int | None]] = []
    if run.plugin.saves and run.plugin.separate:
        places = [(folder / task.name, number) for number, task in enumerate(run.tasks)]
    elif run.plugin.saves:
        places = [(folder, len(run.tasks) - 1)]
    record = run.record()
    try:
        for place, number in places:
            with run.plugin.at(number):
                save_checkpoint(run.learner.lm.model, run.learner.lm.tokenizer, place)
        with contextlib.suppress(UsageError):
            names = [task.name for task in run.tasks]
            write_whole(folder / MAP, heat_map(names, run.before, run.matrix))
        write_whole(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
        if places:
            (folder / STATE).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    return [place for place, _ in places]
