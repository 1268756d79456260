"""A PostgreSQL server of a test's own, where its programs are at hand."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PROGRAMS = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
USER = "postgres"
"""Who runs it where the test is root's, whom it refuses."""


def program(name: str) -> str:
    """Return a program's path, or skip the test."""
    found = next((str(place / name) for place in PROGRAMS if (place / name).is_file()), None)
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed")
    return found


class PostgreSQL:
    """A server with an empty database, on a port of its own.

    Args:
        folder: where it may write, a new one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._as: dict[str, object] = {}
        folder.mkdir()
        if os.geteuid() == 0:
            try:
                shutil.chown(folder, USER)
            except LookupError:
                pytest.skip(f"there is no user {USER}, and PostgreSQL refuses root")
            self._as = {"user": USER, "group": os.stat(folder).st_gid}
            for parent in folder.parents[:-2]:
                parent.chmod(parent.stat().st_mode | 0o011)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._run(program("initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", USER)
        self.start()

    @property
    def url(self) -> str:
        """The database's address."""
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            [program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port),
             "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, **self._as,
        )  # fmt: skip
        ready = [program("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        for _ in range(300):
            if subprocess.run(ready, capture_output=True, check=False).returncode == 0:
                return
            assert self._process.poll() is None, "it does not start"
            time.sleep(0.1)
        raise AssertionError("it does not answer")

    def stop(self) -> None:
        """Stop it at once, as where its machine is gone."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def _run(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, cwd=self.folder, check=False, **self._as)
        assert done.returncode == 0, done.stderr.decode()


@contextmanager
def empty_database(kind: str, folder: Path) -> Iterator[str]:
    """The address of an empty database of `sqlite` or `postgresql`, in a folder."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'edits.db'}"
        return
    database = PostgreSQL(folder / "postgresql")
    yield database.url
    database.stop()
