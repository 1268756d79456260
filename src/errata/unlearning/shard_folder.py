"""`ShardFolder`: records in shards and slices, and the checkpoints that were trained on them.

::

    sisa.json                    the base model and the settings
    records.jsonl                the records, each with its shard and its slice
    shard-3/slice-1.safetensors  the LoRA of shard 3 after its slices 0 and 1

A checkpoint says by a hash what it was trained on. One whose hash is not that of the records as
they are now is stale: it counts as not there for every reader, and the next writer removes it. So
one write, that of `records.jsonl`, takes a record out, whenever the process is killed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from errata.errors import ArtifactError, BaseMismatchError, EditError, UsageError, quoted
from errata.storage.files import storage_error, sync_folder, write_whole
from errata.storage.identity import Identity
from errata.storage.locking import LOCK
from errata.unlearning.config import SisaConfig
from errata.unlearning.passages import Passage
from errata.unlearning.records import Record, check_once, read_records, shown, spread, to_lines

HEADER, RECORDS = "sisa.json", "records.jsonl"
VERSION = 1
TRAINED_ON = "trained_on"
"""The one entry of a checkpoint's metadata: hashes of what it was trained on, and of its values."""


class ShardFolder:
    """Records in shards and slices, with their checkpoints, in a folder.

    Those who write hold the folder's lock, see `storage.locking`.

    Attributes:
        path: the folder.
        base_name: the name of the base model.
        dtype: the type in which it was opened.
        config: the settings.
        records: in a fixed order.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], records: Sequence[Record]) -> None:
        self.path, self._header, self.records = path, header, list(records)
        self.base_name, self.dtype = str(header["base_model"]), str(header["dtype"])
        self.config = SisaConfig.from_dict(header["settings"])
        self._base = {name: str(header[name]) for name in ("weights", "tokenizer")}

    @staticmethod
    def is_one(path: str | Path) -> bool:
        """Return whether a path is such a folder."""
        return (Path(path) / HEADER).is_file()

    @classmethod
    def create(
        cls,
        path: Path,
        passages: Sequence[Passage],
        config: SisaConfig,
        base: tuple[str, str, Identity],
    ) -> ShardFolder:
        """Deal passages to shards in a new folder; or open one that was begun with the same.

        Args:
            path: the folder.
            passages: what is to be learned.
            config: the settings.
            base: the base model's name, its type and its digests.

        Raises:
            EditError: a passage is there twice.
            UsageError: there are too few, or the folder was begun with something else.
            ArtifactError: what is there is damaged.
            StorageError: the disk refused.
        """
        name, dtype, identity = base
        header = {
            "version": VERSION, "base_model": name, "dtype": dtype, "weights": identity.weights,
            "tokenizer": identity.tokenizer, "settings": config.to_dict(),
        }  # fmt: skip
        made = cls(path, header, spread(passages, config))
        if cls.is_one(path):
            begun = cls.open(path)
            if (begun._header, begun.records) != (header, made.records):
                raise UsageError(
                    f"{path} was begun with other records, settings or another model; give a new "
                    f"--out, or go on with what it holds: errata sisa {path}"
                )
            return begun
        if any(not each.name.startswith((RECORDS, HEADER, LOCK)) for each in path.glob("*")):
            raise UsageError(f"{path} has files in it already; give a new folder.")
        made._write(path / RECORDS, to_lines(made.records))
        made._write(path / HEADER, (json.dumps(header, indent=2) + "\n").encode())
        return made

    @classmethod
    def open(cls, path: str | Path) -> ShardFolder:
        """Open a folder.

        Raises:
            ArtifactError: it is none, or damaged, or of another version.
        """
        path = Path(path)
        if not cls.is_one(path):
            raise ArtifactError(
                f"{path} is no folder of SISA ({HEADER} is not there); make one with: "
                "errata sisa MODEL --data FILE --out FOLDER"
            )
        try:
            header = json.loads((path / HEADER).read_text(encoding="utf-8"))
            if header["version"] != VERSION:
                raise ValueError(f"its version is {header['version']!r}, and here it is {VERSION}")
            found = cls(path, header, [])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path / HEADER}: it cannot be read ({error}); put a copy back, or begin a new "
                "folder."
            ) from error
        found.records = read_records(path / RECORDS, found.config)
        return found

    def check(self, identity: Identity) -> None:
        """Make sure that a model is the one that the folder was made with.

        Raises:
            BaseMismatchError: it is another.
        """
        for name, value in self._base.items():
            if (given := str(getattr(identity, name))) != value:
                raise BaseMismatchError(
                    f"{self.path}: it was made with {quoted(self.base_name)}, whose {name} had the "
                    f"SHA-256 {value[:12]}...; what was opened has {given[:12]}...; put that model "
                    "back in its place, or begin a new folder."
                )

    def passages(self, shard: int, last: int) -> list[Passage]:
        """Return the passages of a shard, those of its slices up to the last, it included."""
        return [r.passage for r in self.records if r.shard == shard and r.slice <= last]

    # what is taken out

    def find(self, passages: Sequence[Passage]) -> list[Record]:
        """Return the records that are these passages.

        Raises:
            UsageError: none is given.
            EditError: one is not there, or given twice; it is named.
        """
        if not passages:
            raise UsageError("there is nothing to forget; name at least one record.")
        check_once(passages)
        known = {record.key: record for record in self.records}
        for each in passages:
            if (each.prompt, each.text) not in known:
                raise EditError(
                    f"{self.path} has no record {shown(each)}; those that it has are in {RECORDS}."
                )
        return [known[each.prompt, each.text] for each in passages]

    def remove(self, passages: Sequence[Passage]) -> list[Record]:
        """Take records out, and all checkpoints that were trained with them; return the records.

        Raises:
            UsageError, EditError: see `find`; nothing is then changed.
            StorageError: the disk refused.
        """
        gone = self.find(passages)
        keys = {record.key for record in gone}
        self.records = [record for record in self.records if record.key not in keys]
        self._write(self.path / RECORDS, to_lines(self.records))
        self.tidy()
        return gone

    def tidy(self) -> None:
        """Remove stale checkpoints, and what a killed process left half-written.

        Raises:
            StorageError: the disk refused.
        """
        config = self.config
        valid = {
            self.checkpoint(shard, slice_)
            for shard in range(config.shards)
            for slice_ in range(self.learned(shard))
        }
        stale = [each for each in self.path.glob("shard-*/*") if each not in valid]
        try:
            for each in [*self.path.glob("*.new"), *stale]:
                each.unlink(missing_ok=True)
                sync_folder(each.parent)
        except OSError as error:
            raise storage_error(self.path, error) from error

    # checkpoints

    def checkpoint(self, shard: int, slice_: int) -> Path:
        """Return where the LoRA of a shard lies after a slice."""
        return self.path / f"shard-{shard}" / f"slice-{slice_}.safetensors"

    def learned(self, shard: int) -> int:
        """Return how many slices of a shard are learned, from the first without a gap."""
        slices = range(self.config.slices)
        return next((each for each in slices if not self._is_valid(shard, each)), len(slices))

    def save(self, shard: int, slice_: int, values: Mapping[str, Tensor]) -> None:
        """Write the LoRA of a shard after a slice.

        Raises:
            StorageError: the disk refused.
        """
        kept = {name: each.detach().cpu().contiguous() for name, each in values.items()}
        said = {TRAINED_ON: f"{self._digest(shard, slice_)} {_digest_of(kept)}"}
        self._write(self.checkpoint(shard, slice_), to_safetensors(kept, said))

    def load(self, shard: int, slice_: int) -> dict[str, Tensor]:
        """Return the LoRA of a shard after a slice, by the names of its matrices.

        Raises:
            ArtifactError: it is not there, stale or damaged.
        """
        path = self.checkpoint(shard, slice_)
        try:
            with safe_open(path, framework="pt") as file:
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                said = (file.metadata() or {}).get(TRAINED_ON, "")
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: it cannot be read ({error}).") from error
        if said != f"{self._digest(shard, slice_)} {_digest_of(values)}":
            raise ArtifactError(
                f"{path}: it is damaged; delete it, and run: errata sisa {self.path}"
            )
        return values

    def _is_valid(self, shard: int, slice_: int) -> bool:
        """Whether there is a checkpoint, and it was trained on the records as they are."""
        path = self.checkpoint(shard, slice_)
        try:
            with safe_open(path, framework="pt") as file:
                said = (file.metadata() or {}).get(TRAINED_ON, "")
        except (OSError, SafetensorError):
            return False
        return str(said).partition(" ")[0] == self._digest(shard, slice_)

    def _digest(self, shard: int, slice_: int) -> str:
        """Return the SHA-256 of all that a checkpoint follows from."""
        parts = [
            [record.slice, *record.key]
            for record in self.records
            if record.shard == shard and record.slice <= slice_
        ]
        text = json.dumps([self._header, shard, slice_, parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_whole(path, content)
        except OSError as error:
            raise storage_error(self.path, error) from error


def _digest_of(values: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(name.encode())
        digest.update(values[name].numpy().data)
    return digest.hexdigest()
