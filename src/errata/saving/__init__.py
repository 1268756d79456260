"""What edits leave behind, on disk. An artifact is a folder in PEFT's shape::

    edit_config.json           version, base model and its digests, method, settings, plain state,
    checksums edit_model.safetensors     what changed, and only that
    edits.jsonl                the ledger, oldest first
    PART.safetensors           where a method keeps its tensors in parts: those it names PART/...,
    e.g. folio-00003

Parts are mapped into memory when they are read, and what has not changed since is not written
again. Other files in the folder are left alone.

One process writes at a time (see `locking`), all or nothing (`placing`); any number read meanwhile,
and read one generation or the other (`looking`). Nothing that an artifact says is believed that can
be checked (`reading`), and nothing that others have written is overwritten unasked (`writing`). The
same edits give the same bytes on the same machine, with the same versions and the same number of
threads: another number adds up in another order.
"""

from errata.saving.artifact import VERSION, Artifact, Head, Origin
from errata.saving.bases import BUNDLED, load_base, name_of
from errata.saving.names import COMPLETE, CONFIG, FILES, LEDGER, TENSORS, is_artifact
from errata.saving.reading import damage_named, files_of, read_artifact
from errata.saving.writing import write_artifact

__all__ = [
    "BUNDLED",
    "COMPLETE",
    "CONFIG",
    "FILES",
    "LEDGER",
    "TENSORS",
    "VERSION",
    "Artifact",
    "Head",
    "Origin",
    "damage_named",
    "files_of",
    "is_artifact",
    "load_base",
    "name_of",
    "read_artifact",
    "write_artifact",
]
