"""Saved edits: an artifact is a folder in PEFT's shape.

::

    edit_config.json           version, base model and its digests, method, settings, plain state,
                               checksums of the other files
    edit_model.safetensors     the method's tensors, none of the base model's
    edits.jsonl                the edits, oldest first
    PART.safetensors           tensors that the method names PART/..., e.g. folio-00003

Parts are memory-mapped when they are read, and unchanged files are not written again. Other files
in the folder are left alone.

One process writes at a time (`storage.locking`), all files or none (`transaction`). Any number read
meanwhile, and see one generation of files or the other (`snapshot`). What an artifact says is
checked (`reading`), and what others have written is not overwritten unless asked (`writing`). The
same edits give the same bytes on the same machine, with the same versions and number of threads:
another number of threads adds up in another order.
"""

from errata.saving.artifact import Artifact, Header, Origin
from errata.saving.base_models import BUNDLED, load_base
from errata.saving.copying import copy_artifact
from errata.saving.names import COMPLETE, CONFIG, FILES, LEDGER, is_artifact
from errata.saving.reading import damage_named, files_of, read_artifact
from errata.saving.writing import write_artifact

__all__ = [
    "BUNDLED",
    "COMPLETE",
    "CONFIG",
    "FILES",
    "LEDGER",
    "Artifact",
    "Header",
    "Origin",
    "copy_artifact",
    "damage_named",
    "files_of",
    "is_artifact",
    "load_base",
    "read_artifact",
    "write_artifact",
]
