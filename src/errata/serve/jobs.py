"""`Jobs`: changes that go on while nobody waits; every server of a ledger knows them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool

from errata.errors import ErrataError, StorageError, UnknownNameError
from errata.serve.ledger import Ledger
from errata.serve.problems import problem_of
from errata.serve.schemas import ChangeOut, JobOut, Problem

log = logging.getLogger(__name__)

KEPT = 24 * 3600.0
"""Seconds for which a job is remembered."""
BEAT, SILENCE = 10.0, 60.0
"""Seconds between two signs of life of the server that works on a job, and after how many without
one it has ended.
"""
_JOBS = sa.Table(
    "jobs",
    sa.MetaData(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("alive", sa.Float),
    sa.Column("body", sa.Text),
)
_GONE = Problem.of(
    503,
    "not available",
    "the server that worked on this has ended: /v1/versions says whether it was done before.",
)


class Jobs:
    """The jobs of one server, kept in its ledger's database.

    Args:
        ledger: in whose database they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._mine: dict[str, JobOut] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, change: Coroutine[Any, Any, ChangeOut]) -> JobOut:
        """Start a change.

        Raises:
            StorageError: it could not be kept; nothing was started.
        """
        job = JobOut(id=f"job-{uuid4().hex}", status="running")
        try:
            await run_in_threadpool(self._keep, job)
        except ErrataError:
            change.close()
            raise
        self._mine[job.id] = job
        task = asyncio.create_task(self._work(job, change))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job.model_copy()

    def get(self, job_id: str) -> JobOut:
        """Return a job of any server of this ledger.

        Raises:
            StorageError: the database cannot be read.
            UnknownNameError: none has this id, or it is long done.
        """
        if mine := self._mine.get(job_id):
            return mine
        with self._ledger.connected() as connection:
            row = connection.execute(sa.select(_JOBS).where(_JOBS.c.id == job_id)).first()
        if row is None:
            raise UnknownNameError(f"no job has the id {job_id!r}.")
        job = JobOut.model_validate_json(row.body)
        if job.status == "running" and time.time() - row.alive > SILENCE:
            job.status, job.problem = "failed", _GONE
        return job

    async def _work(self, job: JobOut, change: Coroutine[Any, Any, ChangeOut]) -> None:
        alive = asyncio.create_task(self._stay_alive(job))
        try:
            job.result = await change
            job.status = "done"
        except Exception as error:
            if not isinstance(error, ErrataError):
                log.exception("a job failed")
            job.problem = problem_of(error)
            job.status = "failed"
        alive.cancel()
        with suppress(asyncio.CancelledError):
            await alive
        try:
            await run_in_threadpool(self._keep, job)
            del self._mine[job.id]
        except StorageError as error:  # then this server alone knows
            log.warning("%s", error)

    async def _stay_alive(self, job: JobOut) -> None:
        while True:
            await asyncio.sleep(BEAT)
            with suppress(StorageError):
                await run_in_threadpool(self._keep, job.model_copy())

    def _keep(self, job: JobOut) -> None:
        """Write a job as it is now; forget those of long ago."""
        moment = time.time()
        with self._ledger.connected(writes=True) as connection:
            connection.execute(
                sa.delete(_JOBS).where((_JOBS.c.id == job.id) | (_JOBS.c.alive < moment - KEPT))
            )
            connection.execute(
                sa.insert(_JOBS).values(id=job.id, alive=moment, body=job.model_dump_json())
            )
