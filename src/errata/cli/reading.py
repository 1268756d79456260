"""Files that are given to the command line, checked against the model before anything is done: file and line are named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from errata.edit import Edit, read_json_lines
from errata.errors import EditError, PromptTooLongError, StorageError

if TYPE_CHECKING:
    from errata import LM, Case


def check_edits_fit(lm: LM, path: Path, edits: Sequence[Edit], held: Sequence[Edit]) -> None:
    """Every edit fits the context, and no id stands for two edits.

    Raises:
        PromptTooLongError, EditError: with file and line.
    """
    known = {edit.id: edit for edit in held}
    for line, edit in zip(_lines(path), edits, strict=True):
        if known.setdefault(edit.id, edit) != edit:
            raise EditError(f"{path}:{line}: the id {edit.id!r} already belongs to {known[edit.id].prompt!r}.")
        with _named(path, line):
            lm.encode(edit.prompt, edit.target, "")


def check_cases_fit(lm: LM, path: Path, cases: Sequence[Case]) -> None:
    """Every prompt of the cases, which are the first of the file, fits the context.

    Raises:
        PromptTooLongError: with file and line.
    """
    for line, case in zip(_lines(path), cases, strict=False):
        with _named(path, line):
            for prompt in (case.edit.prompt, *case.rephrases):
                lm.encode(prompt, case.edit.target)
            for probe in (*case.locality, *case.portability):
                lm.encode(probe.prompt, probe.answer or ".")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text.

    Raises:
        StorageError: the disk refused.
    """
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Write a text; the folder is made if need be.

    Raises:
        StorageError: the disk refused.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error}).") from error


def _lines(path: Path) -> Iterator[int]:
    return (number for number, _ in read_json_lines(path))


@contextmanager
def _named(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except PromptTooLongError as error:
        raise PromptTooLongError(f"{path}:{line}: {error}") from error
