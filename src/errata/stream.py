"""`edit_stream` writes edits into a model in parts, saves as it goes, and resumes after a kill.

No other loop writes edits. `prepare_and_save` does the same for methods that are trained first.
Neither edits nor trains by itself: each part is one call of `EditModel.edit`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from errata.arguments import as_list
from errata.config import LARGEST, check_range
from errata.conflicts import OnConflict, accept, new_among
from errata.edit import Edit, Example
from errata.model import EditModel
from errata.progress import OnProgress
from errata.report import EditReport
from errata.saving import is_artifact

OnSave = Callable[[EditReport], None]
"""Called with the report so far, each time after the model has been saved."""


def edit_stream(
    model: EditModel,
    edits: Edit | Iterable[Edit],
    folder: str | Path | None = None,
    save_every: int | None = None,
    check: bool = True,
    on_conflict: OnConflict = "replace",
    progress: OnProgress = lambda what, done, total: None,
    on_save: OnSave = lambda report: None,
) -> EditReport:
    """Write the edits that are not in the model yet, and save the model as it goes.

    Called again with the same edits (after a kill with `load(folder)`), it resumes where it
    stopped. Each save is atomic. Where a save takes longer than writing `save_every` edits, it
    waits until as much time has gone into writing. A method that relearns all edits in each call
    (`Method.relearns_all`) gets them in one.

    Args:
        model: takes the edits.
        edits: the stream, in order.
        folder: where the model is saved; None: nowhere.
        save_every: edits written in one call, and between two saves; None: all of them.
        check: ask the final model the prompt of each edit that was written, and report its answer.
        on_conflict: what becomes of an edit that contradicts an older one, see `EditModel.edit`.
        progress: called while edits are written, and before they are checked.
        on_save: called after each save.

    Raises:
        EditError, ConfigError, PromptTooLongError: as `EditModel.edit`. Conflicts that may not be
            are found before anything is written, an edit that does not fit when its part comes.
        StorageError, UsageError: as `EditModel.save_pretrained`.
        KeyboardInterrupt: after Ctrl-C; its text says what is saved.
    """
    if save_every is not None:
        check_range("save_every", save_every, 1, LARGEST)
    given = as_list(edits, Edit, "edits")
    began = time.perf_counter()
    new, present = new_among(given, model.edits)
    accepted = accept(new, model.conflicts(new), on_conflict, model.edits)
    report = EditReport(
        skipped=present + accepted.left_out,
        left_out=accepted.left_out,
        conflicts=accepted.conflicts,
        total=len(model.edits),
        seconds=time.perf_counter() - began,
    )
    saved = _Saved(model, None if folder is None else Path(folder), on_save)
    try:
        report = _write(model, accepted.edits, report, saved, save_every, progress)
    except KeyboardInterrupt:
        if saved.folder is None:
            raise
        raise KeyboardInterrupt(
            f"stopped; {saved.edits} edits are saved in {folder}. "
            "The same command goes on from there."
        ) from None
    if check and report.written:
        progress("asking the final model", 0, len(report.written))
        report = dataclasses.replace(report, results=model.check_edits(report.written))
    return report


class _Saved:
    """The folder that a stream is saved in, how much is saved there, and how long that took."""

    def __init__(self, model: EditModel, folder: Path | None, on_save: OnSave) -> None:
        self.model, self.folder, self.on_save = model, folder, on_save
        self.edits = len(model.edits) if folder is not None and is_artifact(folder) else 0
        self.seconds, self.written_before = 0.0, 0.0

    def save(self, report: EditReport, last: bool) -> None:
        """Save the model, unless less time has gone into writing than the last save took."""
        if not last and report.seconds - self.written_before < self.seconds:
            return
        if self.folder is not None:
            began = time.perf_counter()
            self.model.save_pretrained(self.folder)
            self.seconds = time.perf_counter() - began
        self.edits, self.written_before = len(self.model.edits), report.seconds
        self.on_save(report)


def _write(
    model: EditModel,
    edits: list[Edit],
    report: EditReport,
    saved: _Saved,
    save_every: int | None,
    progress: OnProgress,
) -> EditReport:
    """Write and save edits whose conflicts are resolved; add them to the report."""
    done, total = report.total, report.total + len(edits)

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress("editing", done, total)

    size = save_every if save_every and not model.method.relearns_all else max(1, len(edits))
    for start in range(0, max(1, len(edits)), size):
        began = time.perf_counter()
        part = model.edit(edits[start : start + size], check=False, progress=step, conflicts=())
        report = report.extended(part, time.perf_counter() - began)
        saved.save(report, last=start + size >= len(edits))
    return report


def prepare_and_save(
    model: EditModel,
    examples: Sequence[Example],
    folder: str | Path,
    due: Callable[[int, float], bool],
    progress: OnProgress = lambda what, done, total: None,
    on_save: Callable[[float], None] = lambda seconds: None,
) -> int:
    """Train the method of a model, save it as it goes, and return how many steps were made.

    Called again (after a kill with `load(folder)`), it resumes where it stopped.

    Args:
        model: has no edits yet.
        examples: what the method learns from.
        folder: where the model is saved.
        due: takes the steps and seconds since the last save, and says whether to save now. The end
            is saved anyway.
        progress: called after each step.
        on_save: called after each save with the seconds that went into training since the last.

    Raises:
        ConfigError, EditError: as `EditModel.prepare`.
        StorageError, UsageError: as `EditModel.save_pretrained`.
        KeyboardInterrupt: after Ctrl-C; its text says what is saved.
    """
    total, made, saved, began = model.method.steps_left, 0, 0, time.perf_counter()

    def save() -> None:
        nonlocal saved, began
        seconds = time.perf_counter() - began
        model.save_pretrained(folder)
        on_save(seconds)
        saved, began = made, time.perf_counter()

    def step(count: int) -> None:
        nonlocal made
        made += count
        progress("training", made, total)
        if due(made - saved, time.perf_counter() - began):
            save()

    try:
        model.prepare(examples, step)
        if made > saved or not made:
            save()
    except KeyboardInterrupt:
        kept = (
            f"{saved} of {total} steps are saved in {folder}" if saved else "no step was saved yet"
        )
        raise KeyboardInterrupt(f"stopped; {kept}. The same command goes on from there.") from None
    return made
