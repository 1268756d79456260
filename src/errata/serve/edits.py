"""The routes of edits, previews, jobs and versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from starlette.concurrency import run_in_threadpool

from errata.conflicts import OnConflict
from errata.edit import Edit
from errata.errors import UnknownNameError
from errata.serve.jobs import Jobs
from errata.serve.keys import Keys, Role
from errata.serve.schemas import (
    ChangeOut,
    EditList,
    EditOut,
    EditsIn,
    JobOut,
    PreviewIn,
    PreviewOut,
    SettlingOut,
    VersionList,
    VersionOut,
)
from errata.serve.service import Service


def with_text(edits: Sequence[Edit], text: str) -> list[Edit]:
    """Return the edits that have a text in prompt, target or subject, in whatever letters."""
    wanted = text.casefold()
    return [
        edit
        for edit in edits
        if wanted in f"{edit.prompt}\n{edit.target}\n{edit.subject or ''}".casefold()
    ]


def edit_routes(service: Service, keys: Keys) -> APIRouter:
    """Return the routes."""
    routes, jobs = APIRouter(prefix="/v1", tags=["edits"]), Jobs(service.ledger)

    async def written(edits: list[Edit], actor: str, on_conflict: OnConflict) -> ChangeOut:
        changed = await run_in_threadpool(service.edit, edits, actor, on_conflict)
        new = changed.report.written if changed.report else []
        results = await run_in_threadpool(service.check, new) if new else []
        return ChangeOut.of(changed, results)

    @routes.post("/edits", responses={202: {"model": JobOut, "description": "a job"}})
    async def edit(
        given: EditsIn,
        response: Response,
        wait: bool = True,
        on_conflict: OnConflict = "replace",
        actor: str = keys.need(Role.EDIT),
    ) -> ChangeOut | JobOut:
        """Write one edit, or those under `edits`: all or none. With `wait=false` as a job."""
        change = written(given.all(), actor, on_conflict)
        if wait:
            return await change
        response.status_code = 202
        return await jobs.start(change)

    @routes.get("/jobs/{job_id}", dependencies=[keys.need(Role.EDIT)])
    async def job(job_id: str) -> JobOut:
        """Return what became of a job."""
        return await run_in_threadpool(jobs.get, job_id)

    @routes.get("/edits", dependencies=[keys.need(Role.EDIT)])
    async def edits(
        text: Annotated[str, Query(description="Stands in prompt, target or subject.")] = "",
        after: Annotated[str, Query(description="The last id of the page before.")] = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> EditList:
        """List the edits in the model, oldest first."""
        found = with_text(service.edits, text)
        start = 0
        if after:
            ids = [edit.id for edit in found]
            if after not in ids:
                raise UnknownNameError(f"no edit in this list has the id {after!r}.")
            start = ids.index(after) + 1
        page = found[start : start + limit]
        more = page and start + limit < len(found)
        return EditList(
            data=[EditOut.of(edit) for edit in page],
            total=len(found),
            next=page[-1].id if more else None,
        )

    @routes.post("/edits/preview")
    async def preview(given: PreviewIn, actor: str = keys.need(Role.EDIT)) -> PreviewOut:
        """Say what edits would change: to their prompts, yours, and edits about their subjects."""
        made = EditsIn(edits=given.edits).all()
        found = await run_in_threadpool(
            service.preview, made, given.prompts, actor, given.on_conflict
        )
        return PreviewOut.of(service.version, found)

    @routes.get("/edits/{edit_id}", dependencies=[keys.need(Role.EDIT)])
    async def one(edit_id: str) -> EditOut:
        """Return an edit."""
        return EditOut.of(service.edit_of(edit_id))

    @routes.delete("/edits/{edit_id}")
    async def undo(edit_id: str, actor: str = keys.need(Role.EDIT)) -> ChangeOut:
        """Undo an edit: the model is then one that never had it."""
        return ChangeOut.of(await run_in_threadpool(service.undo, [edit_id], actor))

    @routes.get("/versions", dependencies=[keys.need(Role.EDIT)])
    async def versions(
        after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> VersionList:
        """List the versions of the model, oldest first."""
        found = await run_in_threadpool(service.history, after, limit)
        return VersionList(active=service.version, data=[VersionOut(**each) for each in found])

    @routes.get("/settling", dependencies=[keys.need(Role.EDIT)])
    async def settling() -> SettlingOut:
        """Say which edits are in the weights that answer, and why others are not."""
        return SettlingOut.of(service.settler.now if service.settler else None)

    @routes.post("/versions/{version}/activate")
    async def activate(
        version: Annotated[int, Path(ge=1, lt=2**31)], actor: str = keys.need(Role.ADMIN)
    ) -> ChangeOut:
        """Bring back the edits of a version, as a new one."""
        return ChangeOut.of(await run_in_threadpool(service.activate, version, actor))

    return routes
