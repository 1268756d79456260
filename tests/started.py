"""Commands of errata in processes of their own: what they share is imported once, not in each."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path


def started(words: list[str], log: Path, largest: int | None = None) -> BaseProcess:
    """A running `errata ...`, the leader of a session, that writes what it says to a file; no file
    may grow beyond `largest` bytes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["errata.model", "errata.cli"])
    process = context.Process(target=_run, args=(words, log, largest))
    process.start()
    return process


def _run(words: list[str], log: Path, largest: int | None) -> None:
    os.setsid()
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["errata", *words]
    from errata.cli import main

    main()
