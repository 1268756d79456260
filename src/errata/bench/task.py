"""`Task`: a benchmark as data, see `tasks/`: where its records are, what they hold, what counts.

A field map says for prompt, target, subject, truth (the answers that were right before) and
rephrases the dotted path in a record, "?" behind a path that may be missing. With `each`, every
element of that list is an edit of its own. Probes have `kind`, `prompt`, `answer`, `also` (further
right answers), and `each` where they are a list of objects; with `of = "record"` they are of the
whole record, and belong to its last edit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from errata.bench.published import Record, read_records, texts_at, values_at
from errata.bench.task_fields import PLACES, read_task
from errata.cases import Case, Probe, read_cases
from errata.edit import Edit
from errata.errors import EditError, UnknownNameError, UsageError, suggest
from errata.words.parts import mentions

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
        truths: for each the answers that were right before, in lower case; empty where the file
            gives none.
        training: cases to train methods on; none of the others.
        irrelevant: texts that no edit is about.
        source: the file, with the first twelve digits of its SHA-256.
        empty: records with an empty target; they are in none of the above.
    """

    cases: list[Case]
    truths: list[frozenset[str]]
    training: list[Case] = field(default_factory=list)
    irrelevant: list[str] = field(default_factory=list)
    source: str = ""
    empty: int = 0


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
    cases, truths, empty = _read(task, path)
    prompts = {prompt for case in cases for prompt in (case.edit.prompt, *case.rephrases)}
    training: list[Case] = []
    if train:
        training = _read(task, train)[0]
    elif beside := _beside(path, task.train):
        training = [
            case
            for case in _read(task, beside)[0]
            if not {case.edit.prompt, *case.rephrases} & prompts
        ]
    texts: list[str] = []
    if task.irrelevant and (other := _beside(path, task.irrelevant["file"] + "?")):
        texts = [
            text
            for record in read_records(other)
            for text in texts_at(record, task.irrelevant["text"])
        ]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return TaskData(cases, truths, training, texts, f"{path.name} {digest}", empty)


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


def _read(task: Task, path: Path) -> tuple[list[Case], list[frozenset[str]], int]:
    """Read a file: (cases, their truths, how many records are none)."""
    if not task.fields:
        cases = read_cases(path)
        return cases, [frozenset()] * len(cases), 0
    both, empty = [], 0
    for number, record in enumerate(read_records(path), start=1):
        try:
            found = list(_cases(task, record, number))
        except EditError as error:
            raise EditError(f"{path}, record {number}: {error}") from error
        both += found
        empty += not found
    return [case for case, _ in both], [truth for _, truth in both], empty


def _cases(task: Task, record: Record, number: int) -> Iterator[tuple[Case, frozenset[str]]]:
    fields = task.fields
    parts: Sequence[Any] = [record]
    if "each" in fields:
        parts = _flat(values_at(record, fields["each"]))
    for place, part in enumerate(parts, start=1):
        subject = (
            next(iter(texts_at(part, fields["subject"])), None) if "subject" in fields else None
        )

        def texts_of(of: Any, path: str, subject: str | None = subject) -> list[str]:
            return [text.replace("{}", subject or "") for text in texts_at(of, path)]

        prompt = texts_of(part, fields["prompt"])[0]
        truth = texts_at(part, fields["truth"]) if "truth" in fields else []
        target = task.instead or _target(part, fields["target"])
        if target is None:
            continue
        name = f"{task.name}-{number:05d}" + (f"-{place}" if len(parts) > 1 else "")
        within = subject if subject and mentions(prompt, subject) else None
        edit = Edit(prompt, target, within, task.operation, name)  # type: ignore[arg-type]
        rephrases = tuple(
            text for path in fields.get("rephrases", ()) for text in texts_of(part, path)
        )
        probes: dict[str, tuple[Probe, ...]] = {}
        for kind in PLACES:
            maps = [
                each
                for each in fields.get(kind, ())
                if place == len(parts) or each.get("of") != "record"
            ]
            probes[kind] = tuple(
                probe
                for each in maps
                for probe in _probes(each, record if each.get("of") == "record" else part, texts_of)
            )
        yield Case(edit, rephrases, **probes), frozenset(text.lower() for text in truth)


def _target(part: Any, path: str) -> str | None:
    """Return an edit's target; None where the field is there and empty."""
    there = bool(values_at(part, path))
    return next(iter(texts_at(part, path + "?" if there else path)), None)


def _probes(given: Mapping[str, str], part: Any, texts_of: Any) -> Iterator[Probe]:
    """Make the probes that one line of a field map describes."""
    kind = given["kind"]
    places = [part]
    if "each" in given:
        places = _flat(values_at(part, given["each"].removesuffix("?")))
    for place in places:
        prompts = texts_of(place, given["prompt"])
        if "text" in given:  # one text, which begins with the prompt
            for text in texts_of(place, given["text"]):
                yield Probe(prompts[0], text.removeprefix(prompts[0]).strip() or text, kind)
            continue
        answers = texts_at(place, given["answer"] + "?" if "each" in given else given["answer"])
        also = texts_at(place, given["also"] + "?") if "also" in given else []
        if not answers and kind != "unrelated":
            continue  # without an answer there is nothing to compare
        others = tuple(dict.fromkeys([*answers[1:], *also]))
        for prompt in prompts:
            yield Probe(prompt, answers[0] if answers else None, kind, others)


def _flat(found: list[Any]) -> list[Any]:
    return [each for value in found for each in (value if isinstance(value, list) else [value])]
