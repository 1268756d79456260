"""`Ledger`: every change of a served model, in order, in a database; durable once it is appended.

The state of the model is a function of its base and these entries. Each entry carries the hash of
the one before, so that none can be changed, taken out or put in between without a trace.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from errata.errors import ArtifactError, StorageError, UnknownNameError, UsageError, quoted

EMPTY = "0" * 64
"""What stands for the hash of the entry before the first."""
CHANNEL = "errata_ledger"
"""Where PostgreSQL tells that an entry was appended."""
_LOCK = int.from_bytes(hashlib.sha256(CHANNEL.encode()).digest()[:7])
BEGIN, EDIT, UNDO, ACTIVATE, REFUSE = "begin", "edit", "undo", "activate", "refuse"
"""Actions: the ledger begins; edits are written; undone; a version comes back; edits are refused.
"""
_TABLES = sa.MetaData()
_ENTRIES = sa.Table(
    "entries",
    _TABLES,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    *(sa.Column(name, sa.Text) for name in ("time", "actor", "action", "body", "previous", "hash")),
)


@dataclass(frozen=True)
class Entry:
    """One change of the model.

    Attributes:
        version: its number, from 1 on; that of the model after it.
        time: when, in UTC.
        actor: who: the name of an API key, or where the server acts by itself, `errata`.
        action: what: `begin`, `edit`, `undo`, `activate` or `refuse`.
        body: the rest, ready for JSON: the edits, their ids, a version, or why.
        previous: the hash of the entry before.
    """

    version: int
    time: str
    actor: str
    action: str
    body: dict[str, Any]
    previous: str

    @property
    def hash(self) -> str:
        """A SHA-256 of all else, in hex."""
        parts = [self.version, self.time, self.actor, self.action, self.body, self.previous]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return it ready for JSON, with the ids of the edits instead of what they say."""
        ids = [edit["id"] for edit in self.body.get("edits", [])] or self.body.get("ids", [])
        told = {name: getattr(self, name) for name in ("version", "time", "actor", "action")}
        return told | {"edits": ids, "activates": self.body.get("version"), "hash": self.hash}


class BehindError(StorageError):
    """Another server appended to the ledger first: its entries come before those of this one."""


class Ledger:
    """A ledger in a database, which several servers may share.

    Args:
        url: of SQLAlchemy, e.g. `sqlite:///edits.db` or `postgresql+psycopg://host/name`.

    Raises:
        UsageError: the URL is none, or its database has no driver here.
        StorageError: the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(url, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise UsageError(
                f"{quoted(url)} is no database that can be opened ({error}); give one like "
                "sqlite:///edits.db or postgresql+psycopg://user@host/name."
            ) from error
        self._name = self._engine.url.render_as_string()
        self._listening: sa.Connection | None = None
        self._is_postgresql = self._engine.dialect.name == "postgresql"
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _make_durable)
            sa.event.listen(self._engine, "begin", _begin)
        with self.connected(writes=True) as connection:
            if self._is_postgresql:  # two servers may begin a ledger at a time
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            settings = alembic.config.Config()
            settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            settings.attributes["connection"] = connection
            alembic.command.upgrade(settings, "head")

    def folder_beside(self, name: str) -> Path | None:
        """Return a folder's path beside the file of the database; None where it is no file."""
        file = self._engine.url.database if self._engine.dialect.name == "sqlite" else None
        return Path(f"{file}.{name}") if file and file != ":memory:" else None

    @property
    def version(self) -> int:
        """The number of the last entry; 0 where there is none."""
        with self.connected() as connection:
            return int(connection.scalar(sa.select(sa.func.max(_ENTRIES.c.version))) or 0)

    def append(self, actor: str, action: str, body: Mapping[str, Any], after: int) -> Entry:
        """Append an entry; once this returns, it survives a crash.

        Args:
            after: the version that the entry changes, which must be the last one.

        Raises:
            BehindError: it is not; nothing was appended.
            StorageError: the database refused. Nothing was appended; but where the connection broke
                while it was being committed, this is not known, and said.
        """
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self.connected(writes=True) as connection:
            if self._is_postgresql:
                connection.execute(sa.text("LOCK TABLE entries IN EXCLUSIVE MODE"))
            last = connection.execute(
                sa.select(_ENTRIES.c.version, _ENTRIES.c.hash)
                .order_by(_ENTRIES.c.version.desc())
                .limit(1)
            ).first()
            version, previous = (last.version, last.hash) if last else (0, EMPTY)
            if version != after:
                raise BehindError(
                    f"the ledger has the version {version}, and this was to follow {after}."
                )
            entry = Entry(after + 1, moment, actor, action, dict(body), previous)
            connection.execute(
                sa.insert(_ENTRIES).values(
                    version=entry.version,
                    time=moment,
                    actor=actor,
                    action=action,
                    body=json.dumps(entry.body, ensure_ascii=False),
                    previous=previous,
                    hash=entry.hash,
                )
            )
            if self._is_postgresql:
                connection.execute(sa.select(sa.func.pg_notify(CHANNEL, str(entry.version))))
        return entry

    def entries(self, after: int = 0, most: int | None = None) -> list[Entry]:
        """Read entries in order, those after a version, and so many at most."""
        return [entry for entry, _ in self._read(after, most)]

    def verify(self) -> int:
        """Check every entry's hash; return how many entries there are.

        Raises:
            ArtifactError: an entry was changed, taken out, or put in; it is named.
        """
        previous, number = EMPTY, 0
        for number, (entry, kept) in enumerate(self._read(), start=1):
            if (entry.version, entry.previous, entry.hash) != (number, previous, kept):
                raise ArtifactError(
                    f"entry {number} of the ledger is not what was written, or one before it is "
                    f"missing: it has the version {entry.version} and the hash {kept[:12]}, and "
                    f"{entry.hash[:12]} is that of its contents."
                )
            previous = kept
        return number

    def edits_at(self, version: int) -> list[dict[str, Any]]:
        """Return the edits in the model at a version, oldest first, as JSON objects.

        Raises:
            UnknownNameError: there is no such version.
        """
        entries = self.entries(most=version)
        if len(entries) != version:
            raise UnknownNameError(f"there is no version {version}; the last is {len(entries)}.")
        stretches = []  # of entries, the last first: each goes on from where an older one ends
        while True:
            back = next((e for e in reversed(entries[:version]) if e.action == ACTIVATE), None)
            stretches.append(entries[back.version if back else 0 : version])
            if back is None:
                break
            version = back.body["version"]
        edits: dict[str, dict[str, Any]] = {}
        for entry in (entry for stretch in reversed(stretches) for entry in stretch):
            if entry.action == EDIT:
                edits |= {edit["id"]: edit for edit in entry.body["edits"]}
            elif entry.action == UNDO:
                for edit_id in entry.body["ids"]:
                    edits.pop(edit_id, None)
        return list(edits.values())

    def wait(self, seconds: float) -> None:
        """Return when another server may have appended; after so many seconds at the latest.

        Raises:
            StorageError: the database cannot be used.
        """
        if not self._is_postgresql:
            time.sleep(seconds)
            return
        with self._failures_told():
            if self._listening is None:
                listening = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                listening.execute(sa.text(f"LISTEN {CHANNEL}"))
                self._listening = listening
                return  # what came before is not told
            try:
                raw: Any = self._listening.connection.driver_connection
                list(raw.notifies(timeout=seconds, stop_after=1))
            except Exception as error:
                self._listening.invalidate()
                self._listening = None
                raise StorageError(f"the ledger cannot be listened to ({error}).") from error

    def close(self) -> None:
        """Close all connections."""
        if self._listening is not None:
            self._listening.close()
        self._engine.dispose()

    def _read(self, after: int = 0, most: int | None = None) -> Iterator[tuple[Entry, str]]:
        query = sa.select(_ENTRIES).where(_ENTRIES.c.version > after)
        query = query.order_by(_ENTRIES.c.version)
        with self.connected() as connection:
            rows = connection.execute(query if most is None else query.limit(most)).all()
        for row in rows:
            body = json.loads(row.body)
            entry = Entry(row.version, row.time, row.actor, row.action, body, row.previous)
            yield entry, row.hash

    @contextmanager
    def connected(self, writes: bool = False) -> Iterator[sa.Connection]:
        """Hold a connection in a transaction, which is committed at the end.

        Raises:
            StorageError: the database refused.
        """
        with self._failures_told(), self._engine.connect() as connection:
            connection = connection.execution_options(errata_writes=writes)
            with connection.begin() as transaction:
                yield connection
                try:
                    transaction.commit()
                except DBAPIError as error:
                    if not (writes and error.connection_invalidated):
                        raise
                    raise StorageError(
                        f"the connection to {self._name} broke while it committed: whether this "
                        "was kept is not known; ask for the versions once it is back."
                    ) from error

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            why = error.orig if isinstance(error, DBAPIError) and error.orig else error
            raise StorageError(
                f"the ledger {self._name} cannot be used ({why}); nothing was changed."
            ) from error


def _make_durable(connection: Any, _: Any) -> None:
    """Make SQLite sync every commit to the disk, and leave transactions to SQLAlchemy."""
    connection.isolation_level = None
    for setting in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000"):
        connection.execute(f"PRAGMA {setting}")


def _begin(connection: sa.Connection) -> None:
    """Take SQLite's lock for writers at the beginning, or two readers could not both write."""
    writes = connection.get_execution_options().get("errata_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
