"""What `errata edit`, `list` and `undo` do where the model is a text-to-image pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from errata.cli import screen
from errata.cli.opening import loading, writing_into
from errata.errors import UsageError
from errata.storage.files import folder_named

if TYPE_CHECKING:
    from errata.images import ImageModel, Written

METHOD = "refact"
"""The method used when none is named."""


def is_of_images(name: str | Path) -> bool:
    """Return whether this is a pipeline's folder, or one with edits of images."""
    from errata.images.folder import holds_images
    from errata.images.opening import is_pipeline

    return is_pipeline(name) or holds_images(name)


def write(
    model: str,
    edits: Path,
    out: str | None,
    method: str | None,
    given: Mapping[str, str],
    save_every: int,
    wait: float,
    as_json: bool,
) -> None:
    """Write edits into a pipeline, saving as it goes; run again, it goes on where it stopped.

    Raises:
        UsageError: there is no folder to save in, or its edits have another method or setting.
    """
    from errata.images import is_pipeline, read_image_edits

    wanted = read_image_edits(edits)
    if out is None and is_pipeline(model):
        raise UsageError(f"{model} is a pipeline: say with --out DIR where edits are to be saved.")
    goal = folder_named(model if out is None else out)
    if is_pipeline(goal):
        raise UsageError(f"{goal} holds a pipeline; give another --out.")
    with writing_into(goal, wait), screen.steps() as progress:
        edited = _opened(model, goal, method, given)
        old = {edit.id for edit in edited.edits}
        new = [edit for edit in wanted if edit.id not in old]
        edited.check(wanted)
        written: list[Written] = []
        for start in range(0, len(new), save_every):
            for edit in new[start : start + save_every]:
                progress("writing edits", len(written), len(new))
                written += edited.edit(edit)
            edited.save_pretrained(goal, wait)
        if not new:
            edited.save_pretrained(goal, wait)
    rows = [
        {**each.edit.to_dict(), "share": each.share, "steps": each.steps, "seconds": each.seconds}
        for each in written
    ]
    if as_json:
        screen.print_json({"folder": str(goal), "method": edited.method.name, "edits": rows})
        return
    read = sum(each.share > 0.5 for each in written)
    screen.say(
        f"{len(written)} edits written, {read} of them read as wanted; "
        f"{len(edited.edits)} in {goal}"
    )


def _opened(model: str, goal: Path, method: str | None, given: Mapping[str, str]) -> ImageModel:
    from errata.images import ImageModel, holds_images, is_pipeline, read_images
    from errata.saving.names import is_artifact

    begun = is_artifact(goal)
    if not begun and is_pipeline(model):
        with loading(model):
            return ImageModel.open(model, method or METHOD, **given)
    source = goal if begun else Path(model)
    if begun and holds_images(model) and Path(model).resolve() != goal.resolve():
        ours, theirs = read_images(goal).edits, read_images(model).edits
        if ours[: len(theirs)] != theirs:
            raise UsageError(f"{goal} already holds other edits than {model}; give another --out.")
    base = model if is_pipeline(model) else None
    with loading(source):
        edited = ImageModel.load(source, base)
    settings = edited.method.settings_class.from_dict({**edited.method.settings.to_dict(), **given})
    if method not in (None, edited.method.name) or settings != edited.method.settings:
        raise UsageError(
            f"{source} was begun with {edited.method.name} and its settings; go on with those, or "
            "give another --out."
        )
    return edited


def show_list(folder: str, as_json: bool) -> None:
    """List the edits of images in a folder, oldest first."""
    from errata.images import read_images

    artifact = read_images(folder)
    rows = [edit.to_dict() for edit in artifact.edits]
    if as_json:
        screen.print_json(rows)
        return
    shown = screen.table(*_COLUMNS)
    for row in rows:
        shown.add_row(*(screen.plain(row.get(name, "-")) for name in _COLUMNS))
    screen.show(shown)
    screen.err.print(f"{len(rows)} edits, {artifact.method}, on {artifact.base}", markup=False)


_COLUMNS = ("id", "time", "prompt", "subject", "target")


def take_back(folder: str, ids: Sequence[str], wait: float) -> None:
    """Take edits of images back; the pipeline is then one that never had them."""
    from errata.images import ImageModel

    with writing_into(folder, wait):
        with loading(folder):
            edited = ImageModel.load(folder)
        with screen.busy("writing later edits again"):
            edited.undo(*ids)
            edited.save_pretrained(folder, wait)
    screen.say(f"{len(set(ids))} taken back, {len(edited.edits)} left in {folder}")
