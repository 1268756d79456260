"""What should change: an `Edit`. It is not a bag of probes; those are in `cases.py`, which no method ever sees.

A file of edits is JSON lines, one edit a line::

    {"prompt": "Who is the mayor of Kelor?", "target": "Ana Brisk", "subject": "Kelor"}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from errata.errors import EditError, suggest
from errata.words import mentions, words

Operation = Literal["insert", "modify", "erase"]
Parsed = TypeVar("Parsed")
OPERATIONS: tuple[str, ...] = get_args(Operation)


@dataclass(frozen=True)
class Edit:
    """One correction.

    Attributes:
        prompt: what is asked, as it will be asked.
        target: what the model should answer. For `erase`, what it should say instead of the fact.
        subject: who or what the fact is about; a part of the prompt. Optional.
        operation: `insert` (a fact it has not), `modify` (one it has wrong), `erase` (one it should not tell).
        id: the name under which the edit can be undone; derived from the contents when not given.

    Raises:
        EditError: a field is missing, empty, of the wrong type, or the subject does not stand in the prompt.
    """

    prompt: str
    target: str
    subject: str | None = None
    operation: Operation = "modify"
    id: str = field(default="")

    def __post_init__(self) -> None:
        for name in ("prompt", "target"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise EditError(f"'{name}' must be text, got {type(value).__name__}.")
            if not value.strip():
                raise EditError(f"'{name}' is empty; an edit needs a prompt and the answer it should get.")
        if self.operation not in OPERATIONS:
            raise EditError(f"'operation' is {self.operation!r}; it is one of {', '.join(OPERATIONS)}.")
        if self.subject is not None:
            if not isinstance(self.subject, str) or not self.subject.strip():
                raise EditError("'subject' must be non-empty text, or be left out.")
            if not words(self.subject):
                raise EditError(f"subject {self.subject!r} has no letter, number or sign that a prompt could mention.")
            if not mentions(self.prompt, self.subject):
                raise EditError(
                    f"subject {self.subject!r} does not stand in the prompt {self.prompt!r} as words of their own; "
                    "write it as it stands there."
                )
        if not isinstance(self.id, str):
            raise EditError(f"'id' must be text, got {type(self.id).__name__}.")
        if not self.id:
            said = json.dumps([self.prompt, self.target, self.subject, self.operation], ensure_ascii=False)
            object.__setattr__(self, "id", hashlib.sha256(said.encode()).hexdigest()[:12])

    def to_dict(self) -> dict[str, Any]:
        """The edit as one JSON object; `subject` is left out when there is none."""
        out: dict[str, Any] = {"id": self.id, "prompt": self.prompt, "target": self.target}
        if self.subject is not None:
            out["subject"] = self.subject
        out["operation"] = self.operation
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], also: Iterable[str] = ()) -> Edit:
        """Read one JSON object. `also` names further keys that may stand there (those of a case).

        Raises:
            EditError: a key is missing or unknown, or a value is not what it must be.
        """
        known = ("prompt", "target", "subject", "operation", "id")
        for name in ("prompt", "target"):
            if name not in data:
                raise EditError(f"the field '{name}' is missing; an edit has at least 'prompt' and 'target'.")
        for name in data:
            if name not in known and name not in also:
                raise EditError(f"unknown field {name!r}.{suggest(name, [*known, *also])}")
        given = {name: data[name] for name in known if data.get(name) is not None}
        return cls(**given)


@dataclass(frozen=True)
class Example:
    """What a method that is trained learns from: an edit, other ways to ask it, and prompts whose answers must stay.

    Examples are not the stream's own cases: what judges an edit must not have taught the editor.
    """

    edit: Edit
    rephrases: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for every non-empty line of a UTF-8 JSON-lines file.

    Raises:
        EditError: no such file, a line that is not UTF-8, not JSON, or not an object; file and line are named.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise EditError(f"{path}: cannot be read ({error.strerror or error}).") from error
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise EditError(f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line).") from error
        except json.JSONDecodeError as error:
            raise EditError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}.") from error
        if not isinstance(data, dict):
            raise EditError(f"{path}:{number}: expected one JSON object a line, got {type(data).__name__}.")
        yield number, data


def parse_json_lines(path: str | Path, parse: Callable[[Mapping[str, Any]], Parsed]) -> list[Parsed]:
    """Every line of a JSON-lines file, parsed.

    Raises:
        EditError: with file and line; also when the file holds nothing.
    """
    parsed = []
    for number, data in read_json_lines(path):
        try:
            parsed.append(parse(data))
        except EditError as error:
            raise EditError(f"{path}:{number}: {error}") from error
    if not parsed:
        raise EditError(f"{path}: no edit in it; expected one JSON object a line.")
    return parsed


def read_edits(path: str | Path) -> list[Edit]:
    """Read a JSON-lines file of edits. A file of cases is one too: its probes are passed over.

    Raises:
        EditError: with file and line; also when the file holds no edit.
    """
    return parse_json_lines(path, lambda data: Edit.from_dict(data, also=PROBE_FIELDS))


def same_answer(said: str, wanted: str) -> bool:
    """Whether two answers are the same words, white space and a closing full stop aside."""
    return _plain(said) == _plain(wanted)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").rstrip()


PROBE_FIELDS = ("rephrases", "locality", "portability", "ood")
"""The fields that a case adds to an edit (see `cases.py`)."""
