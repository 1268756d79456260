"""`Task`: a benchmark as data, see `tasks/`: where its records are, what they hold, what counts.

`field_map` says what a task's fields may be, and makes cases of records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from errata.bench.field_map import cases_of
from errata.bench.published import read_records, texts_at
from errata.bench.task_fields import read_task
from errata.cases import Case, Probe, read_cases
from errata.errors import EditError, UnknownNameError, UsageError, suggest

GENERATED, OWN_FORMAT = "atlas", "jsonl"
"""The generated task, and the task whose records are cases already."""


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name: what it is called.
        title: what it is.
        version: of this description; another one gives other figures.
        paper: where it is described.
        metrics: what counts, the first ones first.
        new_tokens: a free answer is cut there, or at the length of the longest right answer where
            that is longer.
        file: the records, under a folder of data; None where they are made.
        train: other records, for methods that are trained, if there are any.
        train_as: the task whose fields these have; None: this one's. (A file of training records
            that is given has this one's.)
        hub: where they lie on the hub.
        irrelevant: a file of texts that no edit is about, and the path of the text in its records.
        operation: of its edits.
        instead: the answer wanted in the place of what a record has as its answer.
        fields: the field map.
    """

    name: str
    title: str
    version: int
    paper: str
    metrics: tuple[str, ...]
    new_tokens: int
    file: str | None = None
    train: str | None = None
    train_as: str | None = None
    hub: Mapping[str, str] | None = None
    irrelevant: Mapping[str, str] | None = None
    operation: str = "modify"
    instead: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Task:
        """Read the task of a TOML file, its name the file's.

        Raises:
            UsageError: the file cannot be read, or a field is unknown, missing or not valid.
        """
        fields = read_task(path)
        return cls(path.stem, **{**fields, "metrics": tuple(fields["metrics"])})


@dataclass(frozen=True)
class TaskData:
    """What a task's files held.

    Attributes:
        cases: in the file's order.
        training: cases to train methods on; none of the others.
        irrelevant: texts that no edit is about.
        source: the file, with the first twelve digits of its SHA-256.
        empty: records with an empty target; they are in none of the above.
        contradicted: probes that rest on what another record edits; they are left out.
    """

    cases: list[Case]
    training: list[Case] = field(default_factory=list)
    irrelevant: list[str] = field(default_factory=list)
    source: str = ""
    empty: int = 0
    contradicted: int = 0


def task_names() -> list[str]:
    """Return the names of the tasks that come with errata."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _FOLDER.iterdir()
        if entry.name.endswith(".toml")
    )


def find_task(name: str) -> Task:
    """Read a task that comes with errata, or one of a TOML file.

    Raises:
        UnknownNameError: there is none of this name.
        UsageError: the file is not a task's.
    """
    if name.endswith(".toml"):
        return Task.read(Path(name))
    if name not in task_names():
        raise UnknownNameError(
            f"there is no task {name!r}.{suggest(name, task_names())} "
            "A TOML file of your own is one too."
        )
    return Task.read(Path(str(_FOLDER.joinpath(f"{name}.toml"))))


_FOLDER = files("errata.bench").joinpath("tasks")


def load(task: Task, data: Path | None = None, train: Path | None = None) -> TaskData:
    """Read a task's files.

    Args:
        task: not a generated one.
        data: its file, or a folder that it lies in or under; None takes it from the hub.
        train: another file of training records.

    Raises:
        UsageError: there is no such file.
        EditError: a record does not fit the field map; file, record and field are named.
    """
    path = _located(task, data)
    cases, empty, contradicted = _read(task, path)
    asked = {prompt for case in cases for prompt in _prompts(case)}
    training: list[Case] = []
    if train:
        training = _read(task, train)[0]
    elif beside := _beside(path, task.train):
        trained_as = find_task(task.train_as) if task.train_as else task
        training = [
            case for case in _read(trained_as, beside)[0] if asked.isdisjoint(_prompts(case))
        ]
    texts: list[str] = []
    if task.irrelevant and (other := _beside(path, task.irrelevant["file"] + "?")):
        texts = [
            text
            for record in read_records(other)
            for text in texts_at(record, task.irrelevant["text"])
        ]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return TaskData(cases, training, texts, f"{path.name} {digest}", empty, contradicted)


def _prompts(case: Case) -> list[str]:
    """Return all that is asked about a case."""
    probes = (*case.locality, *case.portability, *case.ood)
    return [case.edit.prompt, *case.rephrases, *(probe.prompt for probe in probes)]


def _located(task: Task, data: Path | None) -> Path:
    name = task.file or ""
    if data is None:
        return _from_hub(task)
    if data.is_file():
        return data
    found = sorted(data.rglob(name)) if data.is_dir() else []
    if not found:
        raise UsageError(
            f"{data}: there is no {name} there, nor under it; {task.name} is read from that file."
        )
    return found[0]


def _from_hub(task: Task) -> Path:
    if task.hub is None:
        raise UsageError(
            f"say with --data where {task.file} lies; {task.name} has no known place on the hub."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(task.hub["name"], task.hub["file"], repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        where = f"{task.hub['name']}, {task.hub['file']}"
        raise UsageError(
            f"{task.name} cannot be had from the hub ({where}: {error}); give its file with --data."
        ) from error


def _beside(path: Path, name: str | None) -> Path | None:
    beside = path.parent / name.removesuffix("?") if name else None
    return beside if beside and beside.exists() else None


def _read(task: Task, path: Path) -> tuple[list[Case], int, int]:
    """Read a file: (cases, how many records are none, how many probes are contradicted)."""
    if not task.fields:
        return read_cases(path), 0, 0
    cases: list[Case] = []
    rests: dict[Probe, dict[str, str]] = {}
    empty = 0
    for number, record in enumerate(read_records(path), start=1):
        try:
            name = f"{task.name}-{number:05d}"
            found = list(cases_of(task.fields, record, name, task.operation, task.instead, rests))
        except EditError as error:
            raise EditError(f"{path}, record {number}: {error}") from error
        cases += found
        empty += not found
    edited = {
        prompt: case.edit.target for case in cases for prompt in (case.edit.prompt, *case.rephrases)
    }
    wrong = {
        probe
        for probe, steps in rests.items()
        if any(edited.get(question, answer) != answer for question, answer in steps.items())
    }
    if wrong:
        cases = [
            replace(case, portability=tuple(p for p in case.portability if p not in wrong))
            for case in cases
        ]
    return cases, empty, len(wrong)
