"""`Task`: examples that are learned together: questions, texts with a label, or documents.

A file is JSON lines of one kind: `prompt` and `target` (or `question` and `answer`); `text` and
`label`; or `text` alone. Further fields do not matter, so a file of edits will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errata.edit import check_text
from errata.errors import EditError, UsageError
from errata.storage.json_lines import parse_json_lines
from errata.unlearning.passages import Passage

Kind = Literal["questions", "labels", "documents"]


@dataclass(frozen=True)
class Task:
    """Examples that are learned together.

    Attributes:
        name: of the file.
        kind: of all examples.
        examples: what is learned. A label is the answer to its text.
        tests: what is asked; by default what is learned.
    """

    name: str
    kind: Kind
    examples: tuple[Passage, ...]
    tests: tuple[Passage, ...]

    @property
    def labels(self) -> list[str]:
        """The labels that it knows, in the order in which they come."""
        return list(dict.fromkeys(each.text for each in self.examples))


def read_tasks(paths: Sequence[Path], tests: Sequence[Path] = ()) -> list[Task]:
    """Read a file for each task, and one of tests for each, if there are any.

    Raises:
        EditError: a file cannot be read, or a line, which is named, is no example.
        UsageError: there are not as many files of tests, or one is of another kind; or two tasks
            have the same name.
    """
    if tests and len(tests) != len(paths):
        raise UsageError(
            f"there are {len(paths)} tasks and {len(tests)} files of tests; give one for each, in "
            "the same order, or none."
        )
    read = [_read(path) for path in paths]
    asked = [_read(path) for path in tests] or read
    names = [path.stem for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two tasks are called {twice!r}; give their files different names.")
    for (kind, _), (other, _), path in zip(read, asked, tests or paths, strict=True):
        if kind != other:
            raise UsageError(f"{path} has {other}, and its task has {kind}; they must be the same.")
    return [
        Task(name, kind, examples, asked_of)
        for name, (kind, examples), (_, asked_of) in zip(names, read, asked, strict=True)
    ]


def all_labels(tasks: Iterable[Task]) -> list[str]:
    """Return the labels of tasks, each once."""
    found = [label for task in tasks if task.kind == "labels" for label in task.labels]
    return list(dict.fromkeys(found))


def _read(path: Path) -> tuple[Kind, tuple[Passage, ...]]:
    lines = parse_json_lines(path, _example)
    kind = lines[0][1][0]
    for number, (other, _) in lines:
        if other != kind:
            raise EditError(f"{path}:{number}: it is of {other}, and the lines before of {kind}.")
    return kind, tuple(passage for _, (_, passage) in lines)


def _example(data: Mapping[str, Any]) -> tuple[Kind, Passage]:
    if "text" in data and "label" in data:
        check_text("'text'", data["text"])
        check_text("'label'", data["label"])
        return "labels", Passage(data["text"], data["label"])
    passage = Passage.from_dict(data)
    return ("questions" if passage.prompt else "documents"), passage
