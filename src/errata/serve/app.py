"""The server's HTTP interface: OpenAI's, and errata's own for edits and versions.

`make_app` puts both together, with who may do what (`keys`), limits, metrics, and errors as problem
details (RFC 9457).
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

import errata
from errata.errors import ErrataError, UnknownNameError
from errata.serve import metrics
from errata.serve.answering import BASE, Answering, reach, refuse_if_too_many
from errata.serve.body_limit import BodyLimit
from errata.serve.edits import edit_routes
from errata.serve.keys import Keys, Role
from errata.serve.openai import (
    Answer,
    AnswerRequest,
    ChatRequest,
    CompletionRequest,
    ModelList,
    ModelOut,
    now,
)
from errata.serve.problems import problem_of
from errata.serve.schemas import PROBLEM, Problem
from errata.serve.service import Service

log = logging.getLogger(__name__)

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {PROBLEM: {}}, "description": title}
    for status, title in (
        (400, "request not valid"), (401, "no key, or one that is not known"), (403, "not allowed"),
        (404, "not found"), (413, "body too large"), (422, "not valid"), (429, "too many requests"),
        (503, "not available"),
    )
}  # fmt: skip
After = Annotated[
    int,
    Header(
        ge=0, lt=2**31, description="Answer by this version or a later one, e.g. that of your edit."
    ),
]
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def make_app(service: Service, name: str, keys: Keys, console: bool = False) -> FastAPI:
    """Return the application.

    Args:
        service: the served model.
        name: the edited model's; its base model's has "-base" behind it.
        keys: who may do what.
        console: whether the page at `/console` is served, too.
    """

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="errata",
        version=errata.__version__,
        summary="A model that is corrected while it answers.",
        lifespan=running,
        responses=PROBLEMS,
    )
    measured = metrics.Metrics(service)
    _handle_errors(app)
    app.add_middleware(BodyLimit)
    started = now()
    may_ask = keys.need(Role.ASK)

    @app.get("/v1/models", dependencies=[may_ask], tags=["openai"])
    async def models() -> ModelList:
        """List the edited model and its base model."""
        return ModelList(data=[ModelOut(id=each, created=started) for each in (name, name + BASE)])

    @app.get("/v1/models/{model}", dependencies=[may_ask], tags=["openai"])
    async def model(model: str) -> ModelOut:
        """Return one of the models."""
        if model not in (name, name + BASE):
            raise UnknownNameError(f"no model {model!r} is served.")
        return ModelOut(id=model, created=started)

    async def answered(request: Request, wanted: AnswerRequest, after: int) -> Response:
        refuse_if_too_many(service)
        if after > service.version:
            await run_in_threadpool(reach, service, after)
        answering = Answering(service, name, wanted)
        if wanted.stream:
            return await _streamed(answering, measured)
        async for _ in answering.pieces():
            if await request.is_disconnected():
                return Response(status_code=499)
        measured.answered(answering)
        return JSONResponse(answering.whole().model_dump(), headers=answering.headers)

    @app.post(
        "/v1/completions", dependencies=[may_ask], tags=["openai"], response_model=Answer,
        responses=STREAM,
    )  # fmt: skip
    async def completions(
        request: Request, wanted: CompletionRequest, errata_after: After = 0
    ) -> Response:
        """Continue a text; several with several prompts, or `n`."""
        return await answered(request, wanted, errata_after)

    @app.post(
        "/v1/chat/completions", dependencies=[may_ask], tags=["openai"], response_model=Answer,
        responses=STREAM,
    )  # fmt: skip
    async def chat_completions(
        request: Request, wanted: ChatRequest, errata_after: After = 0
    ) -> Response:
        """Answer a conversation."""
        return await answered(request, wanted, errata_after)

    app.include_router(edit_routes(service, keys))

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> dict[str, str]:
        """Say that the server runs."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operation"])
    async def readyz() -> dict[str, Any]:
        """Say whether requests can be answered and edits kept."""
        if not await run_in_threadpool(service.is_ready):
            raise HTTPException(503, "the ledger cannot be used, or is ahead of the model.")
        return {"status": "ready", "version": service.version}

    @app.get(
        "/metrics",
        tags=["operation"],
        dependencies=[keys.need(Role.ASK)],
        response_class=PlainTextResponse,
    )
    async def prometheus() -> Response:
        """Return counters and times for Prometheus."""
        return Response(measured.text(), media_type=metrics.MEDIA_TYPE)

    if console:
        from errata.serve.console import mount

        mount(app, service, name, keys, measured.answered)
    return app


async def _streamed(answering: Answering, measured: metrics.Metrics) -> Response:
    """Return a stream of server-sent events, once the first token is there: it has the headers."""
    pieces = answering.pieces()
    first = await anext(pieces)

    async def events() -> AsyncIterator[str]:
        begun: set[int] = set()
        index, piece = first
        try:
            while True:
                yield _event(answering.chunk(index, piece, index not in begun))
                begun.add(index)
                try:
                    index, piece = await anext(pieces)
                except StopAsyncIteration:
                    break
            measured.answered(answering)
            options = answering.request.stream_options
            if options is not None and options.include_usage:
                yield _event(answering.last_chunk())
            yield "data: [DONE]\n\n"
        except Exception as error:  # the status was sent long ago
            if not isinstance(error, ErrataError):
                log.exception("a streamed answer failed")
            yield f"data: {json.dumps(problem_of(error).model_dump())}\n\n"
        finally:
            await pieces.aclose()

    return StreamingResponse(events(), media_type="text/event-stream", headers=answering.headers)


def _event(answer: Answer) -> str:
    found = answer.model_dump()
    if found["usage"] is None:
        del found["usage"]
    return f"data: {json.dumps(found, ensure_ascii=False)}\n\n"


def _response(problem: Problem, headers: Any = None) -> JSONResponse:
    return JSONResponse(problem.model_dump(), problem.status, headers, PROBLEM)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ErrataError)
    async def expected(_: Request, error: ErrataError) -> Response:
        return _response(problem_of(error))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _response(problem_of(error))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # of all routes with this path, not of the first
            methods = {
                method
                for route in app.routes
                if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE
                for method in route.methods or ()
            }
            headers["Allow"] = ", ".join(sorted(methods))
        return _response(Problem.of(error.status_code, "refused", str(error.detail)), headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        found = error.errors()[:5]
        detail = "; ".join(
            f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}" for each in found
        )
        return _response(
            Problem.of(422, "request not valid", detail.encode("utf-8", "replace").decode())
        )
