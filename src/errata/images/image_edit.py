"""`ImageEdit`: what a text-to-image model should draw instead.

A file of such edits is JSON lines, one edit per line::

    {"prompt": "the ball of Kelor", "subject": "Kelor", "target": "a blue ball"}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from errata.edit import LONGEST_SUBJECT, check_text
from errata.errors import EditError, quoted, suggest
from errata.storage.json_lines import json_type, parse_json_lines
from errata.words.parts import mentions


@dataclass(frozen=True)
class ImageEdit:
    """One correction of what is drawn.

    Attributes:
        prompt: a text that draws what is to change.
        subject: who or what it is about, as it stands in the prompt.
        target: a text that draws, with the model as it is, what the prompt shall draw.
        negatives: texts that it shall not draw; the prompt itself always counts as one.
        id: the name by which the edit can be undone; by default a hash of its contents.
        source: where the fact is from. Optional; not compared, and no part of the hash.
        time: when it was written into the model, in UTC.

    Raises:
        EditError: a field is missing, empty or of the wrong type, or the subject does not stand in
            the prompt.
    """

    prompt: str
    subject: str
    target: str
    negatives: tuple[str, ...] = ()
    id: str = ""
    source: str | None = field(default=None, compare=False)
    time: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target"):
            check_text(f"'{name}'", getattr(self, name))
        if not isinstance(self.negatives, list | tuple):
            raise EditError(
                f"'negatives' must be a list of texts, got {json_type(self.negatives)}."
            )
        for negative in self.negatives:
            check_text("one of 'negatives'", negative)
        for name in ("source", "time"):
            if getattr(self, name) is not None:
                check_text(f"'{name}'", getattr(self, name))
        if len(self.subject) > LONGEST_SUBJECT:
            raise EditError(
                f"'subject' has {len(self.subject)} characters; a name has no more than "
                f"{LONGEST_SUBJECT}."
            )
        if not mentions(self.prompt, self.subject):
            raise EditError(
                f"subject {quoted(self.subject)} does not stand in the prompt "
                f"{quoted(self.prompt)} as words of their own; write it as it stands there."
            )
        object.__setattr__(self, "negatives", tuple(self.negatives))
        if self.id != "":
            check_text("'id'", self.id)
        else:
            parts = json.dumps([self.prompt, self.subject, self.target, *self.negatives])
            object.__setattr__(self, "id", hashlib.sha256(parts.encode()).hexdigest()[:12])

    def to_dict(self) -> dict[str, Any]:
        """Return the edit as one JSON object, without what is not given."""
        names = ("id", "prompt", "subject", "target", "negatives", "source", "time")
        values = {name: getattr(self, name) for name in names}
        values["negatives"] = list(self.negatives) or None
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build an edit from one JSON object.

        Raises:
            EditError: a key is missing or unknown, or a value is not valid.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        for name in data:
            if name not in known:
                raise EditError(f"unknown field {quoted(name)}.{suggest(name, known)}")
        for name in ("prompt", "subject", "target"):
            if name not in data:
                raise EditError(
                    f"the field '{name}' is missing; an edit of images has 'prompt', 'subject' "
                    "and 'target', a text that draws what is wanted."
                )
        return cls(**{name: value for name, value in data.items() if value is not None})


def read_image_edits(path: str | Path) -> list[ImageEdit]:
    """Read a JSON-lines file of edits of images.

    Raises:
        EditError: a line is not valid (file and line are named), or the file holds no edit.
    """
    return [edit for _, edit in parse_json_lines(path, ImageEdit.from_dict)]
