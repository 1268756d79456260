"""Opens a base model whose weights a verb trains, and saves it with a record of what was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.errors import StorageError, UsageError


def check_new(out: Path, record: str) -> None:
    """Check that a folder has no model in it.

    Raises:
        UsageError: it has.
    """
    if (out / record).exists() or (out / "config.json").exists():
        raise UsageError(f"{out} has a model in it already; give a new folder.")


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


def save(model: Any, tokenizer: Any, out: Path, name: str, record: Mapping[str, Any]) -> None:
    """Save a model, its tokenizer, and the record in a file of this name.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        (out / name).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror}).") from error
