"""Reads and checks input files before anything else, naming file and line; writes JSON lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from errata.edit import Edit
from errata.errors import EditError, PromptTooLongError, StorageError, UsageError, quoted

if TYPE_CHECKING:
    from errata import LM, Case, EditModel


def check_edits_fit(model: EditModel, path: Path, edits: Sequence[tuple[int, Edit]]) -> None:
    """Check that every edit can be written and fits, and that no id stands for two.

    Raises:
        ConfigError: the method must be trained first.
        PromptTooLongError, EditError: with file and line.
    """
    held = {edit.id: edit for edit in model.edits}
    known = dict(held)
    for line, edit in edits:
        if known.setdefault(edit.id, edit) != edit:
            raise EditError(
                f"{path}:{line}: the id {quoted(edit.id)} already belongs to "
                f"{quoted(known[edit.id].prompt)}; give another."
            )
        with _named(path, line):
            if edit.id not in held:
                model.method.check([edit])
            model.lm.encode(edit.prompt, edit.target, "")


def check_cases_fit(lm: LM, path: Path, cases: Sequence[tuple[int, Case]]) -> None:
    """Make sure that every prompt of the cases, under their lines' numbers, fits the context.

    Raises:
        PromptTooLongError: with file and line.
    """
    for line, case in cases:
        with _named(path, line):
            for prompt in (case.edit.prompt, *case.rephrases):
                lm.encode(prompt, case.edit.target)
            for probe in (*case.locality, *case.portability):
                lm.encode(probe.prompt, probe.answer or ".")


def read_prompts(path: Path) -> list[str]:
    """Read the lines of a file that are not empty.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: it cannot be read ({error}).") from error


def rewordings_of(edits: Sequence[Edit], cases: Sequence[Case]) -> dict[str, list[str]]:
    """Return edit id -> the rephrases of the cases that ask and answer the same."""
    rephrases: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in cases:
        rephrases[case.edit.prompt, case.edit.target] += case.rephrases
    return {edit.id: rephrases.get((edit.prompt, edit.target), []) for edit in edits}


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


@contextmanager
def _named(path: Path, line: int) -> Iterator[None]:
    try:
        yield
    except (EditError, PromptTooLongError) as error:
        raise type(error)(f"{path}:{line}: {error}") from error
