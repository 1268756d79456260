"""`save_checkpoint`: an ordinary model and its tokenizer, put into a folder whole or not at all.

`put_whole` is how, for any files of which one says that all are there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.storage.files import new_token, write_new

CONFIG = "config.json"
"""The file by which a folder counts as a model."""
_UNFINISHED = re.compile(r".*\.[0-9a-f]{8}\.new")


@contextmanager
def put_whole(folder: Path, last: str) -> Iterator[Path]:
    """Within a `with` block, give a new folder, whose files are put into another at the end.

    It lies within that one, which is made if it is not there; where the block fails it is removed.

    Args:
        folder: where the files go.
        last: the name of the file that is moved last: where it is, all are, whatever interrupts.

    Raises:
        OSError: the disk refused.
    """
    beside = folder / f".{new_token()}.new"
    try:
        beside.mkdir(parents=True)
        yield beside
        names = sorted(each.name for each in beside.iterdir())
        for name in sorted(names, key=lambda name: name == last):
            os.replace(beside / name, folder / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def save_checkpoint(
    model: Any, tokenizer: Any, folder: Path, more: Mapping[str, bytes] | None = None
) -> None:
    """Save a model and its tokenizer, of transformers both, and `more`: name -> content of files.

    A folder with a config has a whole model in it, whatever interrupts this.

    Raises:
        OSError: the disk refused.
    """
    with put_whole(folder, CONFIG) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for name, content in (more or {}).items():
            write_new(beside / name, content)


def remove_unfinished(folder: Path) -> None:
    """Remove from a locked folder what a killed `put_whole` or `write_whole` left there."""
    for left in folder.iterdir():
        if not _UNFINISHED.fullmatch(left.name):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
