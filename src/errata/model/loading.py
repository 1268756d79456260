"""`load`: an edited model from its folder, base model and all."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from errata import saving
from errata.model import EditModel


@torch.inference_mode(False)
def load(
    path: str | Path | saving.Artifact,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool | Collection[str] = False,
) -> EditModel:
    """The base model and the edits, from what the artifact says of its base.

    Args:
        path: a folder written by `save_pretrained`, or what was read of it.
        dtype: `auto` (as the base was when it was edited), or a torch type's name.
        device_map: as in transformers; None is the CPU.
        trust_remote_code: whether code that comes with the base model may run, or the names of
            models whose code may.

    Raises:
        ArtifactError: the folder is missing, damaged or of another version.
        BaseMismatchError: the base model is no longer the one that was edited.
        UnknownNameError: the base model is not to be had.
    """
    artifact = path if isinstance(path, saving.Artifact) else saving.read_artifact(path)
    wanted = artifact.dtype if dtype == "auto" else dtype
    base, tokenizer = saving.load_base(artifact.base_name, wanted, device_map, trust_remote_code)
    return EditModel.from_pretrained(base, artifact, tokenizer)
