"""The stream of edits that is measured, the runs through it, and the results that are kept of them.

A result is a file of JSON lines: one of type "row", and one of type "answer" for every single
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
from errata.bench.conflicts import ConflictPolicy
from errata.bench.provenance import provenance
from errata.cases import Case
from errata.evaluation import NO_PROBES
from errata.measures import MEASURES, Answer
from errata.methods import resolve
from errata.probes import Probes
from errata.storage import files
from errata.storage.files import storage_error

UNEDITED = "unedited"
"""The name of the base model among the runs."""
GIVEN, FORCED = "given", "forced-"
"""The base model that reads the right fact, and what stands before a method whose router is used:
see `references`.
"""


@dataclass(frozen=True)
class Run:
    """A method with its settings and its name in the table; `method` None: the base model."""

    name: str
    method: str | None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_reference(self) -> bool:
        """Whether it is one of the `references`, and no method."""
        return self.method is None or self.name.startswith(FORCED)

    @property
    def is_trained(self) -> bool:
        """Whether its method is trained on other cases first."""
        if self.method is None:
            return False
        method, settings = resolve(self.method)
        return method.is_trained(method.config_class.from_dict({**settings, **self.settings}))


@dataclass(frozen=True)
class Stream:
    """The stream of edits that all runs write, and how it is measured.

    Attributes:
        model: a bundled name, a folder or a hub name.
        fingerprint: of that model.
        data: what the cases are called.
        policy: the edits, in order, with their probes, and the policy for contradictions.
        training: cases that methods may be trained on, none of them in the stream.
        checkpoints: numbers of edits after which everything is measured, rising.
        folder: where results and saves go.
        limit: seconds that a method may write for to reach a checkpoint; None for no limit.
        save_every: edits between two saves.
        threads: processor threads of a run; None leaves that to torch.
        dtype: the type that the model is loaded in.
        device_map: as in transformers.
        trust_remote_code: names of models whose own code may run.
        new_tokens: a free answer is cut there if the model does not stop by itself.
        neutral: texts that no edit is about, for drift; empty: self-generated text.
        metrics: what counts, the first ones first; nothing is left out for that.
        task: what the benchmark is called.
        probes: asked at the last checkpoint.
    """

    model: str
    fingerprint: str
    data: str
    policy: ConflictPolicy
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
    metrics: tuple[str, ...] = MEASURES
    task: str = ""
    probes: Probes = NO_PROBES

    @property
    def cases(self) -> list[Case]:
        """The edits, in order, with their probes."""
        return self.policy.cases

    def result_file(self, name: str, edits: int) -> Path:
        """Return where a result is kept."""
        return self.folder / "rows" / f"{name}-{edits}.jsonl"

    def probes_at(self, edits: int) -> Probes:
        """Return what else is asked after so many edits."""
        return self.probes if edits == self.checkpoints[-1] else NO_PROBES

    def key(self, run: Run, edits: int) -> str:
        """Return a hash of what a result depends on: another key is another measurement."""
        cases = [case.to_dict() for case in self.cases[:edits]]
        targets = [case.edit.target for case in self.policy.judged(edits)]
        probes = [dataclasses.asdict(each) for each in self.probes_at(edits).questions]
        asked = [cases, targets, self.new_tokens, self.neutral, probes]
        return _hash([self.writing_key(run), run.name.startswith(FORCED), asked])

    def writing_key(self, run: Run) -> str:
        """Return a hash of what the edited model depends on."""
        edits = [case.edit.to_dict() for case in self.cases[: self.checkpoints[-1]]]
        training = [case.to_dict() for case in self.training if run.is_trained]
        inputs = [self.fingerprint, self.dtype, edits, training]
        return _hash([*inputs, run.method, run.settings, errata.__version__])

    def kept_result(self, run: Run, edits: int) -> Result | None:
        """Return an earlier result if it is complete, or would still exceed the limit."""
        result = Result.read(self.result_file(run.name, edits))
        if result is None or result.key != self.key(run, edits) or result.failed:
            return None
        longer = result.limit is not None and (self.limit is None or self.limit > result.limit)
        return None if result.skipped and longer else result

    def missing(self, run: Run) -> list[int]:
        """Return the checkpoints at which a run is still to be measured."""
        return [edits for edits in self.checkpoints if self.kept_result(run, edits) is None]

    def results(self, runs: Sequence[Run]) -> list[Result]:
        """Return the results that there are, failures too, in order of checkpoints."""
        pairs = [(run, edits) for edits in self.checkpoints for run in runs]
        found = [
            (Result.read(self.result_file(run.name, edits)), self.key(run, edits))
            for run, edits in pairs
        ]
        return [result for result, key in found if result is not None and result.key == key]


@dataclass(frozen=True)
class Result:
    """One line of the table: a run after `edits` edits.

    Attributes:
        key: what it depends on, see `Stream.key`.
        name, method, settings: of the run.
        model, data, task, metrics, checkpoints: of the stream.
        edits: after how many it was measured.
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
        limit: seconds of writing that there were for this result, where it was skipped.
        reading: the policy for records that contradict each other, of `conflicts.POLICIES`.
        conflicts: cases of the file that contradict another, and the number of all.
        ceiling: the best reliability of a model that gives one answer to a question.
        drift: of neutral text, see `drift.drift`; and "fluency", see `drift.fluency`; both, and the
            overhead, at the last checkpoint only.
        made: when, on what, with which versions, see `provenance.provenance`; and
            "forward_seconds", of one forward pass of a prompt of 40 tokens, in the same process.
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
    metrics: tuple[str, ...] = MEASURES
    task: str = ""
    drift: dict[str, float | None] | None = None
    checkpoints: tuple[int, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path, answers: Sequence[Answer] = ()) -> None:
        """Write the result and its single answers, atomically."""
        lines = [{"type": "row", **dataclasses.asdict(self)}]
        lines += [{"type": "answer", **dataclasses.asdict(answer)} for answer in answers]
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    @classmethod
    def read(cls, path: Path) -> Result | None:
        """Read the result of a file; None where there is none, or it is of another version."""
        try:
            with path.open(encoding="utf-8") as file:
                fields = json.loads(file.readline())
            return cls(**fields) if fields.pop("type") == "row" else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


def _hash(inputs: Any) -> str:
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_answers(path: Path) -> list[Answer]:
    """Read the single answers behind a result."""
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [Answer(**line) for line in lines if line.pop("type") == "answer"]


def blank_result(run: Run, stream: Stream, edits: int, **more: Any) -> Result:
    """Make a result without figures."""
    return Result(
        stream.key(run, edits),
        run.name,
        run.method,
        {name: value for name, value in run.settings.items() if name != "method"},
        stream.model,
        stream.data,
        edits,
        reading=stream.policy.name,
        conflicts=(stream.policy.conflicts, stream.policy.records),
        ceiling=stream.policy.ceiling(edits),
        metrics=stream.metrics,
        task=stream.task,
        checkpoints=stream.checkpoints,
        made=provenance(),
        **more,
    )


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote; None where there is none, or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def write_whole(path: Path, text: str) -> None:
    """Write a file, atomically.

    Raises:
        StorageError: the disk refused; the old file is unchanged.
    """
    try:
        files.write_whole(path, text.encode())
    except OSError as error:
        raise storage_error(path, error) from error
