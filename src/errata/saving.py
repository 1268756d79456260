"""The only file that knows the files on disk. An artifact is a folder in PEFT's shape::

    edit_config.json           version, base model and its fingerprint, method, settings, plain state
    edit_model.safetensors     what changed, and only that
    edits.jsonl                the ledger, oldest first
    PART.safetensors           where a method keeps its tensors in parts: those it names PART/...

Parts are mapped into memory when they are read, and what has not changed since is not written again.

Writing is all or nothing: new files are written beside the old ones, then a marker says that they are complete, then they
take their places. A reader that finds the marker finishes the move first. Other files in the folder are left alone, but
for those that a write which was cut off may have left: *.new of the above.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import load_file as map_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from errata.cache import fingerprint
from errata.config import MethodConfig
from errata.edit import Edit, read_edits
from errata.errors import ArtifactError, BaseMismatchError, ConfigError, EditError, StorageError, UnknownNameError

VERSION = 1
CONFIG, TENSORS, LEDGER = "edit_config.json", "edit_model.safetensors", "edits.jsonl"
FILES = (TENSORS, LEDGER, CONFIG)
"""What every artifact has, the one that names the others last."""
COMPLETE = ".edit_complete"
PART = ".safetensors"
BUNDLED = {"atlas": Path(__file__).parent / "atlas" / "model"}
"""Models that come with errata, by name."""


@dataclass(frozen=True)
class Artifact:
    """A saved folder, read and checked for damage but not yet put on a model."""

    path: Path
    base_name: str
    base_type: str
    base_fingerprint: str
    dtype: str
    method: str
    settings: dict[str, Any]
    values: dict[str, Any]
    tensors: dict[str, Tensor]
    edits: list[Edit]

    def check_base(self, base: PreTrainedModel) -> None:
        """Make sure that this is the model the edits were written for.

        Raises:
            BaseMismatchError: it is another one.
        """
        if fingerprint(base) != self.base_fingerprint:
            raise BaseMismatchError(
                f"{self.path}: these edits were written for {self.base_name!r} ({self.base_type}, fingerprint "
                f"{self.base_fingerprint}); the given base model is {name_of(base)!r} ({base.config.model_type}, "
                f"fingerprint {fingerprint(base)}). Give the model they were written for."
            )

    def goes_on_from(self, other: Artifact) -> bool:
        """Whether this is the other with more edits: of the same model, by the same method."""
        same = all(getattr(self, name) == getattr(other, name) for name in ("base_fingerprint", "method", "settings"))
        return same and [e.id for e in self.edits[: len(other.edits)]] == [e.id for e in other.edits]


def name_of(base: PreTrainedModel) -> str:
    """How the base model can be found again: a bundled name, an absolute folder, or a hub name."""
    given = str(getattr(base.config, "_name_or_path", "") or "")
    for name, folder in BUNDLED.items():
        if given and Path(given).is_dir() and Path(given).resolve() == folder.resolve():
            return name
    return str(Path(given).resolve()) if given and Path(given).is_dir() else given


def load_base(
    name: str, dtype: str = "auto", device_map: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model and its tokenizer, from a bundled name, a local folder or a hub name.

    Args:
        dtype: a torch type's name, or `auto`: as the file says (the bundled models: float32, which is fast on a CPU).

    Raises:
        UnknownNameError: there is no such model.
        ConfigError: there is no such type.
    """
    where = str(BUNDLED.get(name, name))
    wanted: Any = "float32" if dtype == "auto" and name in BUNDLED else dtype
    if wanted != "auto" and not isinstance(getattr(torch, wanted, None), torch.dtype):
        raise ConfigError(f"dtype {dtype!r} is unknown; try float32, bfloat16 or float16.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=wanted, device_map=device_map)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        bundled = ", ".join(BUNDLED)
        raise UnknownNameError(
            f"model {name!r} cannot be loaded: {reason} Give a hub name, a local folder, or a bundled model ({bundled})."
        ) from error
    return model, tokenizer


def is_artifact(path: str | Path) -> bool:
    """Whether a folder holds edits (and not, say, a base model)."""
    return (Path(path) / CONFIG).is_file() or (Path(path) / COMPLETE).is_file()


def write_artifact(
    path: str | Path,
    base: PreTrainedModel,
    config: MethodConfig,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    edits: Sequence[Edit],
) -> None:
    """Write the files, all or none; those that are there as they should be stay.

    Raises:
        StorageError: the disk refused; what stood there before still does.
    """
    path = Path(path)
    ledger = "".join(json.dumps(edit.to_dict(), ensure_ascii=False) + "\n" for edit in edits).encode()
    parts: dict[str, dict[str, Tensor]] = {TENSORS: {}}
    for name, tensor in tensors.items():
        part, _, own = name.rpartition("/")
        parts.setdefault(f"{part}{PART}" if part else TENSORS, {})[own] = tensor.contiguous()
    sums: dict[str, str] = {}
    about = {
        "errata_version": VERSION,
        "base_model_name_or_path": name_of(base),
        "base_model_type": base.config.model_type,
        "base_fingerprint": fingerprint(base),
        "base_dtype": str(base.dtype).removeprefix("torch."),
        "method": config.method,
        "settings": {name: value for name, value in config.to_dict().items() if name != "method"},
        "state": values,
        "sha256": sums,
    }

    def contents() -> Iterator[tuple[str, bytes]]:
        for name, held in parts.items():
            yield name, to_safetensors(held, {"format": "pt"})
        yield LEDGER, ledger
        yield CONFIG, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()

    try:
        path.mkdir(parents=True, exist_ok=True)
        finish(path)
        placed: list[str] = []
        try:
            for name, content in contents():
                sums[name] = hashlib.sha256(content).hexdigest()
                if not (path / name).is_file() or _digest(path / name) != sums[name]:
                    _write_through(_beside(path / name), content)
                    placed.append(name)
            gone = sorted(set(_parts_of(path)) - set(parts))
            _write_through(_beside(path / COMPLETE), json.dumps({"placed": placed, "gone": gone}).encode())
            os.replace(_beside(path / COMPLETE), path / COMPLETE)
        except OSError:
            with contextlib.suppress(OSError):
                _forget_unfinished(path)
            raise
        finish(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). What was saved there before is untouched."
        ) from error


def finish(path: Path) -> None:
    """Finish a write that was cut off after its files were complete; forget one that was cut off before."""
    if (path / COMPLETE).exists():
        with damage_named(path / COMPLETE):
            placed, gone = (list(map(str, json.loads((path / COMPLETE).read_bytes())[each])) for each in ("placed", "gone"))
        for name in placed:
            if _beside(path / name).exists():
                os.replace(_beside(path / name), path / name)
        for name in gone:
            (path / name).unlink(missing_ok=True)
        (path / COMPLETE).unlink()
    _forget_unfinished(path)


def _forget_unfinished(path: Path) -> None:
    for file in [*path.glob(_beside(path / f"*{PART}").name), *(_beside(path / name) for name in (*FILES, COMPLETE))]:
        file.unlink(missing_ok=True)


def files_of(path: Path) -> list[str]:
    """The names of an artifact's files, as it names them.

    Raises:
        OSError, ValueError, KeyError, TypeError: its config cannot be read.
    """
    named = json.loads((path / CONFIG).read_text(encoding="utf-8"))["sha256"]
    return [name for name in (*named, CONFIG) if Path(name).name == name]


def _parts_of(path: Path) -> list[str]:
    """The files that are there beside those that every artifact has, if there is an artifact."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return [name for name in files_of(path) if name not in FILES and name.endswith(PART)]
    return []


def read_artifact(path: str | Path) -> Artifact:
    """Read a folder and check that it is whole.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
    """
    path = Path(path)
    if not is_artifact(path):
        seen = "there is no such folder" if not path.exists() else f"it has no {CONFIG}"
        raise ArtifactError(f"{path}: not a folder of edits ({seen}). `errata edit MODEL --out {path}` makes one.")
    with contextlib.suppress(OSError):
        finish(path)
    try:
        about = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ArtifactError(f"{path / CONFIG}: damaged, not JSON ({error}).") from error
    version = about.get("errata_version") if isinstance(about, dict) else None
    if version != VERSION:
        raise ArtifactError(f"{path / CONFIG}: version {version!r}; this errata reads version {VERSION}.")
    with damage_named(path):
        for name in dict.fromkeys((TENSORS, LEDGER, *files_of(path)[:-1])):
            if _digest(path / name) != about["sha256"][name]:
                size = (path / name).stat().st_size
                raise ArtifactError(
                    f"{path / name}: damaged or changed since it was written ({size} bytes, checksum differs)."
                )
        tensors = parse_safetensors((path / TENSORS).read_bytes())
        for name in _parts_of(path):
            mapped = map_safetensors(path / name)
            tensors |= {f"{name.removesuffix(PART)}/{own}": tensor for own, tensor in mapped.items()}
        return Artifact(
            path=path,
            base_name=about["base_model_name_or_path"],
            base_type=about["base_model_type"],
            base_fingerprint=about["base_fingerprint"],
            dtype=about["base_dtype"],
            method=about["method"],
            settings=dict(about["settings"]),
            values=dict(about["state"]),
            tensors=tensors,
            edits=read_edits(path / LEDGER) if (path / LEDGER).stat().st_size else [],
        )


@contextlib.contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong while a folder's contents are understood into an `ArtifactError` that names it."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{error.filename}: cannot be read ({error.strerror}).") from error
    except (KeyError, ValueError, TypeError, IndexError, SafetensorError, EditError) as error:
        raise ArtifactError(f"{path}: damaged, {type(error).__name__}: {error}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
