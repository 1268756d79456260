"""How an `EditModel` is made: on a base model, or from a saved folder that names its base model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata import hub, saving
from errata.config import MethodConfig
from errata.model.edit_model import EditModel


def get_edit_model(
    base: PreTrainedModel, config: MethodConfig, tokenizer: PreTrainedTokenizerBase
) -> EditModel:
    """Make a model that can be edited with the method that the config belongs to.

    Raises:
        ArchitectureError: the base model has no place for edits.
        ConfigError: a setting does not fit this model.
    """
    return EditModel(base, config, tokenizer)


@torch.inference_mode(False)
def load(
    path: str | Path | saving.Artifact,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool | Collection[str] = False,
    revision: str | None = None,
) -> EditModel:
    """Load the base model that an artifact names, and put the artifact's edits on it.

    Args:
        path: a folder written by `save_pretrained`, the name of a repository that it was pushed to
            (`user/name`), or the artifact read from either.
        dtype: `auto` (that of the base model when it was edited; on a CPU that does not compute in
            half precision, float32), or a torch dtype's name.
        device_map: as in transformers; None is the CPU.
        trust_remote_code: whether code that comes with the base model may run, or the names of
            models whose code may.
        revision: of a repository: a branch, a tag or a commit.

    Raises:
        ArtifactError: there are no edits of this name, or they are damaged or of another version.
        HubError: the hub has the edits, but not all of their files can be had.
        BaseMismatchError: the base model is no longer the one that was edited.
        UnknownNameError: the base model cannot be loaded.
    """
    artifact = path if isinstance(path, saving.Artifact) else hub.read(path, revision)
    artifact.check_file()
    base, tokenizer = saving.load_base(
        artifact.base_name, dtype, device_map, trust_remote_code, artifact.dtype
    )
    return EditModel.from_pretrained(base, artifact, tokenizer)
