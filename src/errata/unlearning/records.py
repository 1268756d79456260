"""`Record`: a passage in a shard and a slice; how passages are dealt to them, written and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.errors import ArtifactError, EditError, UsageError, quoted
from errata.storage import state
from errata.storage.json_lines import parse_json_lines
from errata.unlearning.config import SisaConfig
from errata.unlearning.passages import Passage


@dataclass(frozen=True)
class Record:
    """A prompt and a text, and where they lie; shards and slices count from 0."""

    passage: Passage
    shard: int
    slice: int

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from other records."""
        return self.passage.prompt, self.passage.text

    def to_dict(self) -> dict[str, Any]:
        """Return the record, ready for JSON."""
        prompt, text = self.key
        said = {"question": prompt, "answer": text} if prompt else {"text": text}
        return {"shard": self.shard, "slice": self.slice, **said}


def spread(passages: Sequence[Passage], config: SisaConfig) -> list[Record]:
    """Deal passages to shards and slices, by a hash of each and the seed.

    Shards differ by one record at most in size, and so do a shard's slices.

    Raises:
        EditError: a passage is there twice.
        UsageError: there are fewer than one for each slice.
    """
    check_once(passages)
    shards, slices, count = config.shards, config.slices, len(passages)
    if count < shards * slices:
        raise UsageError(
            f"{shards} shards of {slices} slices need {shards * slices} records, and there are "
            f"{count}; set fewer shards or slices, e.g. --set shards={max(1, count // slices)}."
        )

    def drawn(passage: Passage) -> bytes:
        text = json.dumps([config.seed, passage.prompt, passage.text])
        return hashlib.sha256(text.encode()).digest()

    return [
        Record(Passage(passage.prompt, passage.text), place % shards, place // shards % slices)
        for place, passage in enumerate(sorted(passages, key=drawn))
    ]


def check_once(passages: Iterable[Passage]) -> None:
    """Make sure that no passage is there twice.

    Raises:
        EditError: one is; it is named.
    """
    seen = set[tuple[str, str]]()
    for each in passages:
        if (each.prompt, each.text) in seen:
            raise EditError(
                f"the record {shown(each)} is there twice: it would lie in two shards; say it once."
            )
        seen.add((each.prompt, each.text))


def shown(passage: Passage) -> str:
    """Return a passage as an error names it."""
    return quoted(f"{passage.prompt} {passage.text}".strip())


def to_lines(records: Sequence[Record]) -> bytes:
    """Return records as JSON lines."""
    lines = (json.dumps(record.to_dict(), ensure_ascii=False) + "\n" for record in records)
    return "".join(lines).encode()


def read_records(path: Path, config: SisaConfig) -> list[Record]:
    """Read records that were written; none of an empty file.

    Raises:
        ArtifactError: the file is not there, or damaged; the line is named.
    """

    def parsed(data: Mapping[str, Any]) -> Record:
        try:
            shard = state.whole(data.get("shard"), "shard", 0, config.shards - 1)
            slice_ = state.whole(data.get("slice"), "slice", 0, config.slices - 1)
        except ValueError as error:
            raise EditError(f"{error}.") from error
        return Record(Passage.from_dict(data), shard, slice_)

    try:
        if path.is_file() and not path.stat().st_size:
            return []
        records = [record for _, record in parse_json_lines(path, parsed)]
        check_once(record.passage for record in records)
    except (EditError, OSError) as error:
        raise ArtifactError(
            f"{error} {path.name} is damaged; put a copy back, or begin a new folder."
        ) from error
    return records
