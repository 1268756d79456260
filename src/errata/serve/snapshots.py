"""`Snapshots`: the edited model as it was at some versions, so that a start need not write it anew.

A snapshot is a folder as `save_pretrained` writes it, named by its version and by the hash of that
version's entry: one of another ledger, or of one that was changed, is never taken.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from pathlib import Path

from errata.config import MethodConfig
from errata.errors import ErrataError
from errata.methods import method_class
from errata.model import EditModel
from errata.saving import Artifact, read_artifact
from errata.serve.ledger import Entry, Ledger

log = logging.getLogger(__name__)

KEPT = 2
"""The newest ones stay: should one be damaged, the other is near."""
_TEMPORARY = ".new-"
_NAME = re.compile("[0-9]{9}-[0-9a-f]{16}")


class Snapshots:
    """Snapshots in a folder.

    Args:
        folder: of this ledger alone; made when the first is written.
        every: versions after which a further one is due.
    """

    def __init__(self, folder: Path, every: int = 1000) -> None:
        self.folder, self.every = folder, every
        self.newest = 0
        """The version of the newest one that was read or written."""

    def due(self, version: int) -> bool:
        """Return whether so much has changed since the newest one that a version is to be kept."""
        return version - self.newest >= self.every

    def restored(self, model: EditModel, ledger: Ledger) -> EditModel:
        """Return a model with the edits of the newest snapshot that can be read.

        Args:
            model: on the base model, with the method and settings to serve. It is returned as it is
                where no snapshot is of its ledger, method and settings; otherwise another one
                takes its base model.
        """
        hashes = {entry.version: entry.hash for entry in ledger.entries()}
        config, tokenizer = model.method.config, model.lm.tokenizer
        for version, path in sorted(self._there().items(), reverse=True):
            if path.name != _name(version, hashes.get(version, "")):
                log.warning("the snapshot %s is not of this ledger, and is not read", path)
                continue
            try:
                artifact = read_artifact(path)
                if _config_of(artifact) != config:
                    log.warning("the snapshot %s has other settings, and is not read", path)
                    continue
                base = model.unload()
                model = EditModel(base, config, tokenizer)
                found = EditModel.from_pretrained(base, artifact, tokenizer)
            except (ErrataError, OSError) as error:
                log.warning("the snapshot %s is not read, an older one is: %s", path, error)
                continue
            self.newest = version
            return found
        return model

    def write(self, model: EditModel, entry: Entry) -> None:
        """Keep a model: all of it or nothing. What is older than the newest two goes.

        Args:
            entry: the last one in the ledger that the model has; nobody may change the model
                meanwhile.
        """
        self.newest = entry.version
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=_TEMPORARY) as folder:
                model.save_pretrained(Path(folder) / "edits")
                target = self.folder / _name(entry.version, entry.hash)
                if not target.exists():
                    (Path(folder) / "edits").rename(target)
            there = self._there()
            for version in sorted(there)[:-KEPT]:
                shutil.rmtree(there[version])
        except (ErrataError, OSError) as error:
            log.warning("no snapshot of version %d was written: %s", entry.version, error)

    def _there(self) -> dict[int, Path]:
        """Return the folders that are named like snapshots, by version."""
        found = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                found[int(path.name.partition("-")[0])] = path
        return found


def _name(version: int, digest: str) -> str:
    return f"{version:09d}-{digest[:16]}"


def _config_of(artifact: Artifact) -> MethodConfig:
    return method_class(artifact.method).config_class.from_dict(artifact.settings)
