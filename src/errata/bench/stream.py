"""What is measured, on what: a stream of edits, those who go through it, and what is kept of it. It
measures nothing.

A measurement is a file of JSON lines: one of type "row", and one of type "answer" for every single
answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import errata
from errata.bench.provenance import provenance
from errata.bench.readings import Reading
from errata.cases import Case
from errata.evaluation import Answer
from errata.storage import files
from errata.storage.files import storage_error

UNEDITED = "unedited"
"""The name of the base model among the contenders."""


@dataclass(frozen=True)
class Contender:
    """A method with its settings, under the name it has in the table. `method` is None for the
    unedited model.
    """

    name: str
    method: str | None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """What all contenders go through.

    Attributes:
        model: a bundled name, a folder or a hub name.
        fingerprint: of that model.
        data: what the cases are called.
        reading: the edits, in order, with their probes, and how those are read that contradict each
            other.
        training: cases that methods may be trained on; none of them in the stream.
        checkpoints: numbers of edits after which everything is measured, rising.
        folder: where rows and saves go.
        limit: seconds that a contender may take to reach a checkpoint; None for no limit.
        save_every: edits between two saves.
        threads: processor threads of a contender; None leaves that to torch.
        dtype: the type that the model is loaded in.
        device_map: as in transformers.
        trust_remote_code: names of models whose own code may run.
        new_tokens: a free answer is cut there if the model does not stop by itself.
        neutral: texts that no edit is about, for drift; empty: text of the model's own making.
        metrics: what counts, the first ones first; nothing is left out for that.
        task: what the benchmark is called.
    """

    model: str
    fingerprint: str
    data: str
    reading: Reading
    training: list[Case]
    checkpoints: tuple[int, ...]
    folder: Path
    limit: float | None = None
    save_every: int = 50
    threads: int | None = None
    dtype: str = "float32"
    device_map: str | None = None
    trust_remote_code: tuple[str, ...] = ()
    new_tokens: int = 24
    neutral: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("reliability", "generalization", "locality", "portability")
    task: str = ""

    @property
    def cases(self) -> list[Case]:
        """The edits, in order, with their probes."""
        return self.reading.cases

    def row_file(self, name: str, edits: int) -> Path:
        """Where a row is kept."""
        return self.folder / "rows" / f"{name}-{edits}.jsonl"

    def key(self, contender: Contender, edits: int) -> str:
        """What a row depends on, in short: another key is another measurement."""
        cases = [case.to_dict() for case in self.cases[:edits]]
        judged = [case.edit.target for case in self.reading.judged(edits)]
        training = [case.to_dict() for case in self.training]
        asked = [
            self.fingerprint,
            self.dtype,
            cases,
            judged,
            training,
            self.new_tokens,
            self.neutral,
        ]
        said = [*asked, contender.method, contender.settings, errata.__version__]
        return hashlib.sha256(
            json.dumps(said, sort_keys=True, ensure_ascii=False).encode()
        ).hexdigest()[:16]

    def kept_row(self, contender: Contender, edits: int) -> Row | None:
        """The row of an earlier run, if it is of the same measurement and came to an end, or would
        still take too long.
        """
        row = Row.read(self.row_file(contender.name, edits))
        if row is None:
            return None
        if row.key != self.key(contender, edits) or row.failed:
            return None
        longer = row.limit is not None and (self.limit is None or self.limit > row.limit)
        return None if row.skipped and longer else row


@dataclass(frozen=True)
class Row:
    """One line of the table: a contender after `edits` edits.

    Attributes:
        key: what it depends on, see `Stream.key`.
        figures: `Evaluation.to_dict` of the final model; None when there is none, and `failed` or
            `skipped` says why.
        seconds_per_edit: of writing alone, over all edits so far.
        peak_memory: of the process until the last edit was written (on a GPU: of its memory), in
            MiB.
        bytes_saved: of the saved folder.
        overhead: batch size -> time of generation over that of the unedited model, less 1; the
            prompts are edited ones.
        training_seconds: that `prepare` took, once; None for methods that are not trained.
        failed, skipped: why there are no figures.
        limit: seconds of writing that there were for this row, where it was skipped; None in rows
            of before that was kept.
        reading: of `readings.READINGS`.
        conflicts: cases of the file that contradict another, and of how many.
        ceiling: the reliability that a model reaches at most that gives one answer to a question.
        metrics: what counts for this data, the first ones first.
        task: what the benchmark is called.
        drift: of neutral text, see `drift.drift`; and "fluency", see `drift.fluency`.
        checkpoints: of the run, as far as it is now.
        made: when, on what, with which versions, see `provenance.provenance`.
    """

    key: str
    name: str
    method: str | None
    settings: dict[str, Any]
    model: str
    data: str
    edits: int
    figures: dict[str, Any] | None = None
    seconds_per_edit: float | None = None
    peak_memory: float | None = None
    bytes_saved: int | None = None
    overhead: dict[str, float] | None = None
    training_seconds: float | None = None
    failed: str | None = None
    skipped: str | None = None
    limit: float | None = None
    reading: str = "published"
    conflicts: tuple[int, int] = (0, 0)
    ceiling: float = 1.0
    metrics: tuple[str, ...] = ("reliability", "generalization", "locality", "portability")
    task: str = ""
    drift: dict[str, float | None] | None = None
    checkpoints: tuple[int, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, answers: Sequence[Answer] = ()) -> None:
        """Write the row and the answers that it sums up, whole or not at all."""
        lines = [{"type": "row", **dataclasses.asdict(self)}]
        lines += [{"type": "answer", **dataclasses.asdict(answer)} for answer in answers]
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    @classmethod
    def read(cls, path: Path) -> Row | None:
        """The row of a file; None where there is none, or it is of another making."""
        try:
            with path.open(encoding="utf-8") as file:
                said = json.loads(file.readline())
            kind = said.pop("type")
            return cls(**said) if kind == "row" else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def read_answers(path: Path) -> list[Answer]:
    """The single answers of a measurement."""
    with path.open(encoding="utf-8") as file:
        said = [json.loads(line) for line in file]
    return [
        Answer(**{k: v for k, v in each.items() if k != "type"})
        for each in said
        if each["type"] == "answer"
    ]


def blank_row(contender: Contender, stream: Stream, edits: int, **more: Any) -> Row:
    """A row without figures."""
    settings = {name: value for name, value in contender.settings.items() if name != "method"}
    key = stream.key(contender, edits)
    return Row(
        key,
        contender.name,
        contender.method,
        settings,
        stream.model,
        stream.data,
        edits,
        reading=stream.reading.name,
        conflicts=(stream.reading.conflicts, stream.reading.records),
        ceiling=stream.reading.ceiling(edits),
        metrics=stream.metrics,
        task=stream.task,
        checkpoints=stream.checkpoints,
        made=provenance(),
        **more,
    )


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None where there is none, or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        StorageError: the disk refused; what stood there before still does.
    """
    try:
        files.write_whole(path, text.encode())
    except OSError as error:
        raise storage_error(path, error) from error
