"""What should change: an `Edit`. It is not a bag of probes; those are in `cases.py`, which no
method ever sees.

A file of edits is JSON lines, one edit a line::

    {"prompt": "Who is the mayor of Kelor?", "target": "Ana Brisk", "subject": "Kelor"}
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from errata.errors import ConfigError, EditError, quoted, suggest
from errata.words.parts import mentions, words

Operation = Literal["insert", "modify", "erase"]
Parsed = TypeVar("Parsed")
OPERATIONS: tuple[str, ...] = get_args(Operation)
PROBE_FIELDS = ("rephrases", "locality", "portability", "ood")
"""The fields that a case adds to an edit (see `cases.py`)."""
LONGEST_SUBJECT = 1000
"""Characters; a longer one is no name."""
_NO_TEXT = re.compile("[\ud800-\udfff\0]")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def check_text(name: str, value: object) -> None:
    """Raise `EditError` unless a value, called so, is text that can be read and written, and not
    empty.
    """
    if not isinstance(value, str):
        raise EditError(f"{name} must be text, got {kind_of(value)}.")
    if not value.strip():
        raise EditError(f"{name} is empty; it must be text, or be left out where it may be.")
    check_signs(name, value)


def check_signs(name: str, value: str) -> None:
    """Raise `EditError` where a text, called so, holds what is no text: half of a surrogate pair,
    or a NUL.
    """
    if wrong := _NO_TEXT.search(value):
        what = "a NUL" if wrong[0] == "\0" else f"half a surrogate pair ({wrong[0]!r})"
        raise EditError(
            f"{name} holds {what} at character {wrong.start() + 1}, which is no text; take it out."
        )


def kind_of(value: object) -> str:
    """What a value of JSON is called there."""
    return "null" if value is None else type(value).__name__


@dataclass(frozen=True)
class Edit:
    """One correction.

    Attributes:
        prompt: what is asked, as it will be asked.
        target: what the model should answer. For `erase`, what it should say instead of the fact.
        subject: who or what the fact is about; the prompt mentions it. Optional.
        operation: `insert` (a fact it has not), `modify` (one it has wrong); they are done alike.
            `erase` (one it should not tell) stands in old ledgers; no method does it yet.
        id: the name under which the edit can be undone; derived from the contents when not given.
        source: who or what says so. Optional; two edits that differ in nothing else are one.
        time: when it was written into the model, in UTC, e.g. 2026-11-25T22:00:00Z; stamped by
            `EditModel.edit`.

    Raises:
        EditError: a field is missing, empty, of the wrong type, or the prompt does not mention the
            subject.
    """

    prompt: str
    target: str
    subject: str | None = None
    operation: Operation = "modify"
    id: str = field(default="")
    source: str | None = field(default=None, compare=False)
    time: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self._check_fields()
        if self.subject is not None and len(self.subject) > LONGEST_SUBJECT:
            raise EditError(
                f"'subject' has {len(self.subject)} characters; a name has no more than {LONGEST_SUBJECT}."
            )
        if self.subject is not None and not words(self.subject):
            raise EditError(
                f"subject {quoted(self.subject)} has no letter, number or sign that a prompt could mention."
            )
        if self.subject is not None and not mentions(self.prompt, self.subject):
            raise EditError(
                f"subject {quoted(self.subject)} does not stand in the prompt {quoted(self.prompt)} as words of their own; "
                "write it as it stands there."
            )

    def _check_fields(self) -> None:
        for name in ("prompt", "target"):
            check_text(f"'{name}'", getattr(self, name))
        for name in ("subject", "source"):
            if getattr(self, name) is not None:
                check_text(f"'{name}'", getattr(self, name))
        if self.operation not in OPERATIONS:
            raise EditError(
                f"'operation' is {quoted(self.operation)}; it is one of {', '.join(OPERATIONS)}."
            )
        if self.time is not None and not _is_time(self.time):
            raise EditError(
                f"'time' is {quoted(self.time)}; it is a time in UTC like 2026-11-25T22:00:00Z, or left out."
            )
        if self.id != "":
            check_text("'id'", self.id)
        else:
            said = json.dumps(
                [self.prompt, self.target, self.subject, self.operation], ensure_ascii=False
            )
            object.__setattr__(self, "id", hashlib.sha256(said.encode()).hexdigest()[:12])

    def to_dict(self) -> dict[str, Any]:
        """The edit as one JSON object; `subject`, `source` and `time` are left out when there are
        none.
        """
        out: dict[str, Any] = {"id": self.id, "prompt": self.prompt, "target": self.target}
        if self.subject is not None:
            out["subject"] = self.subject
        out["operation"] = self.operation
        return out | {
            name: value
            for name, value in (("source", self.source), ("time", self.time))
            if value is not None
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], also: Iterable[str] = ()) -> Self:
        """Read one JSON object. `also` names further keys that may stand there (those of a case).

        Raises:
            EditError: a key is missing or unknown, or a value is not what it must be.
        """
        return cls(**_given(data, also))

    @classmethod
    def from_ledger(cls, data: Mapping[str, Any], also: Iterable[str] = ()) -> Self:
        """Read one JSON object that was written into a model: what it did there it does, whatever
        new edits must say.

        `also` names further keys that may stand there.

        Raises:
            EditError: a key is missing or unknown, or a value is of the wrong type.
        """
        made = object.__new__(cls)
        values = {each.name: each.default for each in dataclasses.fields(cls)} | _given(data, also)
        for name, value in values.items():
            object.__setattr__(made, name, value)
        made._check_fields()
        return made


def _given(data: Mapping[str, Any], also: Iterable[str] = ()) -> dict[str, Any]:
    """What a JSON object says of an edit's fields."""
    known = [each.name for each in dataclasses.fields(Edit)]
    for name in data:
        if name not in known and name not in also:
            raise EditError(f"unknown field {quoted(name)}.{suggest(name, [*known, *also])}")
    for name in ("prompt", "target"):
        if name not in data:
            raise EditError(
                f"the field '{name}' is missing; an edit has at least 'prompt' and 'target'."
            )
    return {
        name: data[name]
        for name in known
        if data.get(name) is not None or name in ("prompt", "target")
    }


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.strptime(value, _TIME).strftime(_TIME) == value
    except ValueError:
        return False


def stamped(edit: Edit, now: datetime | None = None) -> Edit:
    """The edit with the time at which it is written: now, or `SOURCE_DATE_EPOCH`, by which folders
    are equal byte for byte.

    Raises:
        ConfigError: `SOURCE_DATE_EPOCH` is not a number of seconds.
    """
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    if now is None and fixed is not None:
        try:
            now = datetime.fromtimestamp(int(fixed), UTC)
        except (ValueError, OverflowError, OSError):
            raise ConfigError(
                f"SOURCE_DATE_EPOCH is {quoted(fixed)}; it is a number of seconds since 1970."
            ) from None
    return dataclasses.replace(edit, time=(now or datetime.now(UTC)).strftime(_TIME))


@dataclass(frozen=True)
class Example:
    """What a method that is trained learns from: an edit, other ways to ask it, and prompts whose
    answers must stay.

    Examples are not the stream's own cases: what judges an edit must not have taught the editor.
    """

    edit: Edit
    rephrases: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for every non-empty line of a UTF-8 JSON-lines file, which is
    read once.

    Raises:
        EditError: no such file, a line that is not UTF-8, not JSON, or not an object; file and line
            are named.
    """
    path = Path(path)
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except (OSError, ValueError) as error:
        raise EditError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from error
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
        except UnicodeDecodeError as error:
            raise EditError(
                f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line)."
            ) from error
        except json.JSONDecodeError as error:
            raise EditError(
                f"{path}:{number}: not JSON: {error.msg} at column {error.colno}."
            ) from error
        except RecursionError:
            raise EditError(
                f"{path}:{number}: lists or objects lie too deep in each other."
            ) from None
        except EditError as error:
            raise EditError(f"{path}:{number}: {error}") from error
        except ValueError as error:  # a number of thousands of digits
            raise EditError(
                f"{path}:{number}: a number is too long ({str(error).partition(';')[0]})."
            ) from error
        if not isinstance(data, dict):
            raise EditError(
                f"{path}:{number}: expected one JSON object a line, got {kind_of(data)}."
            )
        yield number, data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise EditError(f"the field {quoted(twice)} stands there twice; say it once.")
    return found


def parse_json_lines(
    path: str | Path, parse: Callable[[Mapping[str, Any]], Parsed]
) -> list[tuple[int, Parsed]]:
    """(line number, what it says) of every line of a JSON-lines file, parsed.

    Raises:
        EditError: with file and line; also when the file holds nothing.
    """
    parsed = []
    for number, data in read_json_lines(path):
        try:
            parsed.append((number, parse(data)))
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
    return [edit for _, edit in read_numbered_edits(path)]


def read_numbered_edits(path: str | Path) -> list[tuple[int, Edit]]:
    """(line number, edit) of every line of a file of edits; see `read_edits`."""
    return parse_json_lines(path, lambda data: Edit.from_dict(data, also=PROBE_FIELDS))


def same_answer(said: str, wanted: str) -> bool:
    """Whether two answers are the same words, white space and a closing full stop aside."""
    return _plain(said) == _plain(wanted)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").rstrip()
