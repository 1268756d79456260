"""`Edit`: what should change. Probes that judge an edit are in `cases.py`, which no method sees.

A file of edits is JSON lines, one edit per line::

    {"prompt": "Who is the mayor of Kelor?", "target": "Ana Brisk", "subject": "Kelor"}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, get_args

from errata.errors import ConfigError, EditError, quoted, suggest
from errata.storage.json_lines import json_type, parse_json_lines
from errata.words.parts import mentions, words

Operation = Literal["insert", "modify", "erase"]
OPERATIONS: tuple[str, ...] = get_args(Operation)
PROBE_FIELDS = ("truth", "rephrases", "locality", "portability", "ood")
"""The fields that a case adds to an edit (see `cases.py`)."""
REFUSAL = "unknown"
"""What is answered instead of an erased fact where the edit does not say: it ends a sentence as
well as it answers a question.
"""
LONGEST_SUBJECT = 1000
"""Characters of a subject, at most."""
_NO_TEXT = re.compile("[\ud800-\udfff\0]")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def check_text(name: str, value: object) -> None:
    """Raise `EditError` unless a value is text, valid and not empty; `name` is for the error."""
    if not isinstance(value, str):
        raise EditError(f"{name} must be text, got {json_type(value)}.")
    if not value.strip():
        raise EditError(f"{name} is empty; it must be text, or be left out where it may be.")
    check_characters(name, value)


def check_characters(name: str, value: str) -> None:
    """Raise `EditError` if a text holds half a surrogate pair or a NUL; `name` is for the error."""
    if wrong := _NO_TEXT.search(value):
        what = "a NUL" if wrong[0] == "\0" else f"half a surrogate pair ({wrong[0]!r})"
        raise EditError(
            f"{name} holds {what} at character {wrong.start() + 1}, which is no text; take it out."
        )


@dataclass(frozen=True)
class Edit:
    """One correction.

    Attributes:
        prompt: the question, as it will be asked.
        target: the answer the model should give; for `erase`, what it should answer instead of the
            fact, `REFUSAL` where it is left out.
        subject: who or what the fact is about; the prompt mentions it. Optional.
        aliases: other names of the subject, by which it may be asked for as well. Folio goes by
            them; other methods do not.
        operation: `insert` (a fact the model lacks) or `modify` (one it has wrong), which are done
            alike; `erase` (one it should not tell): the target is a refusal, and a method may do
            more to keep the model from telling the fact.
        id: the name by which the edit can be undone; by default a hash of its contents.
        source: where the fact is from. Optional; not compared, and no part of the hash.
        time: when it was written into the model, in UTC, e.g. 2026-11-25T22:00:00Z; set by
            `EditModel.edit`.

    Raises:
        EditError: a field is missing, empty, of the wrong type, the prompt does not mention the
            subject, or there are aliases of no subject.
    """

    prompt: str
    target: str = ""
    subject: str | None = None
    operation: Operation = "modify"
    id: str = field(default="")
    source: str | None = field(default=None, compare=False)
    time: str | None = field(default=None, compare=False)
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_fields()
        subject = self.subject
        if subject is None:
            if self.aliases:
                raise EditError(
                    "'aliases' are other names of the 'subject', which is missing; give it."
                )
            return
        for what, name in (
            ("'subject'", subject),
            *(("one of 'aliases'", each) for each in self.aliases),
        ):
            if len(name) > LONGEST_SUBJECT:
                raise EditError(
                    f"{what} has {len(name)} characters; a name has no more than {LONGEST_SUBJECT}."
                )
            if not words(name):
                raise EditError(
                    f"{what}, {quoted(name)}, has no letter, number or sign that a prompt could "
                    "mention."
                )
        if not mentions(self.prompt, subject):
            raise EditError(
                f"subject {quoted(subject)} does not stand in the prompt {quoted(self.prompt)} "
                "as words of their own; write it as it stands there."
            )

    def _check_fields(self) -> None:
        """Check all but the subject's mention, and derive what is left out."""
        if self.operation == "erase" and self.target == "":
            object.__setattr__(self, "target", REFUSAL)
        for name in ("prompt", "target"):
            check_text(f"'{name}'", getattr(self, name))
        for name in ("subject", "source"):
            if getattr(self, name) is not None:
                check_text(f"'{name}'", getattr(self, name))
        if not isinstance(self.aliases, list | tuple):
            raise EditError(f"'aliases' must be a list of names, got {json_type(self.aliases)}.")
        for alias in self.aliases:
            check_text("one of 'aliases'", alias)
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if self.operation not in OPERATIONS:
            raise EditError(
                f"'operation' is {quoted(self.operation)}; it is one of {', '.join(OPERATIONS)}."
            )
        if self.time is not None and not _is_time(self.time):
            raise EditError(
                f"'time' is {quoted(self.time)}; it is a time in UTC like 2026-11-25T22:00:00Z, "
                "or left out."
            )
        if self.id != "":
            check_text("'id'", self.id)
        else:
            parts = [self.prompt, self.target, self.subject, self.operation, *self.aliases]
            contents = json.dumps(parts, ensure_ascii=False)
            object.__setattr__(self, "id", hashlib.sha256(contents.encode()).hexdigest()[:12])

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as one JSON object, without what is not given."""
        names = ("id", "prompt", "target", "subject", "aliases", "operation", "source", "time")
        values = {name: getattr(self, name) for name in names}
        values["aliases"] = list(self.aliases) or None
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], also: Iterable[str] = ()) -> Self:
        """Build an edit from one JSON object; `also` names further keys that are allowed.

        Raises:
            EditError: a key is missing or unknown, or a value is not valid.
        """
        return cls(**_fields(data, also))

    @classmethod
    def from_ledger(cls, data: Mapping[str, Any], also: Iterable[str] = ()) -> Self:
        """Build an edit from a JSON object of a ledger; `also` names further allowed keys.

        Its subject is not checked against the prompt: the edit is in a model already.

        Raises:
            EditError: a key is missing or unknown, or a value is of the wrong type.
        """
        edit = object.__new__(cls)
        defaults = {each.name: each.default for each in dataclasses.fields(cls)}
        for name, value in (defaults | _fields(data, also)).items():
            object.__setattr__(edit, name, value)
        edit._check_fields()
        return edit


def _fields(data: Mapping[str, Any], also: Iterable[str]) -> dict[str, Any]:
    """The fields of an edit that a JSON object gives."""
    known = [each.name for each in dataclasses.fields(Edit)]
    for name in data:
        if name not in known and name not in also:
            raise EditError(f"unknown field {quoted(name)}.{suggest(name, [*known, *also])}")
    needed = ("prompt",) if data.get("operation") == "erase" else ("prompt", "target")
    for name in needed:
        if name not in data:
            raise EditError(
                f"the field '{name}' is missing; an edit has at least 'prompt' and 'target', "
                "or where it erases, 'prompt'."
            )
    return {name: data[name] for name in known if data.get(name) is not None or name in needed}


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.strptime(value, _TIME).strftime(_TIME) == value
    except ValueError:
        return False


def with_timestamp(edit: Edit) -> Edit:
    """Return the edit with the time that `timestamp` gives.

    Raises:
        ConfigError: `SOURCE_DATE_EPOCH` is not a number of seconds.
    """
    return dataclasses.replace(edit, time=timestamp())


def timestamp() -> str:
    """Return the present time, or that of `SOURCE_DATE_EPOCH` if set, as an edit has it.

    With `SOURCE_DATE_EPOCH`, saved folders are reproducible byte for byte.

    Raises:
        ConfigError: `SOURCE_DATE_EPOCH` is not a number of seconds.
    """
    time = datetime.now(UTC)
    if (seconds := os.environ.get("SOURCE_DATE_EPOCH")) is not None:
        try:
            time = datetime.fromtimestamp(int(seconds), UTC)
        except (ValueError, OverflowError, OSError):
            raise ConfigError(
                f"SOURCE_DATE_EPOCH is {quoted(seconds)}; it is a number of seconds since 1970."
            ) from None
    return time.strftime(_TIME)


@dataclass(frozen=True)
class Example:
    """A training example of a method that is trained before it edits.

    Examples must not be the cases by which the method is judged.

    Attributes:
        edit: the edit.
        rephrases: other wordings of its prompt.
        others: prompts whose answers must stay.
    """

    edit: Edit
    rephrases: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def read_edits(path: str | Path) -> list[Edit]:
    """Read a JSON-lines file of edits, or of cases, whose probes are ignored.

    Raises:
        EditError: a line is not valid (file and line are named), or the file holds no edit.
    """
    return [edit for _, edit in read_numbered_edits(path)]


def read_numbered_edits(path: str | Path) -> list[tuple[int, Edit]]:
    """Read (line number, edit) from every line of a file of edits; see `read_edits`."""
    return parse_json_lines(path, lambda data: Edit.from_dict(data, also=PROBE_FIELDS))


def same_answer(answer: str, wanted: str) -> bool:
    """Return whether two answers are the same, up to white space and a final full stop."""
    return _plain(answer) == _plain(wanted)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").rstrip()
