"""Open a diffusers pipeline's folder: its CLIP text encoders, and the whole of it to draw with."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
)

from errata.errors import ArchitectureError, ArtifactError, UnknownNameError, UsageError
from errata.images.encoder import TextEncoder
from errata.progress import report
from errata.storage.files import open_regular

INDEX = "model_index.json"
"""The file by which diffusers knows a pipeline's folder."""
_CLASSES = {each.__name__: each for each in (CLIPTextModel, CLIPTextModelWithProjection)}
_MOST = 2**20


def is_pipeline(path: str | Path) -> bool:
    """Return whether a folder holds a diffusers pipeline."""
    try:
        return bool(str(path).strip()) and (Path(path) / INDEX).is_file()
    except (OSError, ValueError):
        return False


def open_encoders(folder: str | Path) -> list[TextEncoder]:
    """Load the CLIP text encoders of a pipeline's folder, in float32 on the CPU.

    Raises:
        UnknownNameError: it is no such folder, or an encoder cannot be loaded.
        ArtifactError: its index is damaged.
        ArchitectureError: it has no CLIP text encoder.
    """
    parts = _index(folder)
    names = sorted(
        name
        for name, part in parts.items()
        if isinstance(part, list) and len(part) == 2 and part[1] in _CLASSES
    )
    if not names:
        has = sorted(name for name, part in parts.items() if isinstance(part, list) and part[-1])
        raise ArchitectureError(
            f"{folder} has no CLIP text encoder to write edits into (it has {', '.join(has)}); "
            "give a text-to-image pipeline that reads its prompts with CLIP."
        )
    return [_encoder(Path(folder), name, _CLASSES[parts[name][1]]) for name in names]


def _index(folder: str | Path) -> dict[str, Any]:
    if not is_pipeline(folder):
        raise UnknownNameError(
            f"{folder} is no folder of a diffusers pipeline (it has no {INDEX}); give one that "
            "`DiffusionPipeline.from_pretrained` opens."
        )
    path = Path(folder) / INDEX
    try:
        with open_regular(path, _MOST) as file:
            parts = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged or unreadable ({error}).") from error
    if not isinstance(parts, dict):
        raise ArtifactError(f"{path}: damaged, expected a JSON object.")
    return parts


def _encoder(folder: Path, name: str, kind: Any) -> TextEncoder:
    report(f"reading {name}", 0, 0)
    tokenizer = name.replace("text_encoder", "tokenizer")
    try:
        model, found = kind.from_pretrained(
            folder / name, output_loading_info=True, local_files_only=True, dtype="float32"
        )
        if missing := sorted(found["missing_keys"]):
            raise ValueError(f"{len(missing)} of its weights are missing ({missing[0]}, ...).")
        words = AutoTokenizer.from_pretrained(folder / tokenizer, local_files_only=True)
        if not isinstance(words, PreTrainedTokenizerBase):
            raise ValueError(f"{tokenizer} is no tokenizer.")
    except Exception as error:  # whatever transformers raises for missing or damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnknownNameError(
            f"{folder / name} cannot be loaded: {reason} Copy the pipeline's folder again, with "
            f"{name} and {tokenizer}."
        ) from error
    return TextEncoder(name, model, words)


def open_pipeline(folder: str | Path, encoders: list[TextEncoder]) -> Any:
    """Load a pipeline with diffusers, with these text encoders instead of its own.

    Raises:
        UsageError: diffusers is not installed.
        UnknownNameError: the pipeline cannot be loaded.
    """
    if find_spec("diffusers") is None:
        raise UsageError("pictures need diffusers: pip install 'errata[images]'.")
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    parts: dict[str, Any] = {}
    for each in encoders:
        parts[each.name] = each.model
        parts[each.name.replace("text_encoder", "tokenizer")] = each.tokenizer
    report("reading the pipeline", 0, 0)
    try:
        loaded = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **parts)
    except Exception as error:  # whatever diffusers raises for missing or damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnknownNameError(
            f"{folder} cannot be loaded by diffusers: {reason} Copy the pipeline's folder again."
        ) from error
    loaded.set_progress_bar_config(disable=True)
    return loaded
