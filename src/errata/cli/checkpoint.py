"""The folder of a model that a verb trains: opened once, saved whole, with a record of what was
done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.errors import UsageError


def check_new(folder: Path, *others: str) -> None:
    """Check that a folder has no model in it, nor one of some other files.

    Raises:
        UsageError: it has.
    """
    from errata.storage.checkpoints import CONFIG

    if any((folder / name).exists() for name in (CONFIG, *others)):
        raise UsageError(f"{folder} has a model in it already; give a new folder.")


@contextmanager
def new_folder(out: str, state: str, wait: float) -> Iterator[Path]:
    """Lock the folder of a model that is trained, until it is saved.

    Args:
        out: the folder.
        state: the file from which interrupted training goes on; it is removed at the end.
        wait: for another process that writes there, in seconds.

    Raises:
        UsageError: it has a model in it, or its name is empty or that of a file.
        FolderBusyError: another process writes into it, and still does after so many seconds.
        StorageError: it cannot be written.
    """
    from errata.cli.opening import writing_into
    from errata.storage.checkpoints import remove_unfinished
    from errata.storage.files import folder_named

    folder = folder_named(out)
    check_new(folder)
    with writing_into(folder, wait):
        check_new(folder)  # which another process may have filled meanwhile
        remove_unfinished(folder)
        yield folder
        (folder / state).unlink(missing_ok=True)


def open_base(model: str, doing: str, dtype: str, device_map: str | None) -> tuple[Any, Any]:
    """Load a base model and its tokenizer; `doing` names the verb's work, for the error.

    Raises:
        UsageError: it is a folder of edits.
    """
    from errata.cli.opening import edits_of, load_base

    if edits_of(model) is not None:
        raise UsageError(
            f"{model} is a folder of edits: {doing} changes a model's weights; give its base "
            "model, or `errata export ... --to weights` first."
        )
    return load_base(model, dtype, device_map)


def save(model: Any, tokenizer: Any, folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Save a model, its tokenizer, and the record in a file of this name: all of it, or no model.

    Raises:
        StorageError: the folder cannot be written.
    """
    from errata.storage.checkpoints import save_checkpoint
    from errata.storage.files import storage_error

    content = (json.dumps(record, indent=2) + "\n").encode()
    try:
        save_checkpoint(model, tokenizer, folder, {name: content})
    except OSError as error:
        kept = "What was learned so far is there; run the same command again to go on."
        raise storage_error(folder, error, kept) from error
