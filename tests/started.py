"""Commands of errata in processes of their own: copies of this one, in which all is imported."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path


def started(
    words: list[str], log: Path, before: Callable[[], object] = lambda: None
) -> BaseProcess:
    """A running `errata ...`, the leader of a session, that writes what it says to a file.

    Args:
        words: those of the command line.
        log: the file.
        before: called in the process before the command.
    """
    process = multiprocessing.get_context("fork").Process(target=_run, args=(words, log, before))
    process.start()
    return process


def no_file_beyond(size: int) -> None:
    """Let this process write no file of more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _run(words: list[str], log: Path, before: Callable[[], object]) -> None:
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    before()
    sys.argv = ["errata", *words]
    from errata.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()
