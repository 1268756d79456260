"""Refuses requests whose bodies are too large, whether they say how large they are or not."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errata.serve.schemas import PROBLEM, Problem

MOST_BYTES = 4 * 2**20
"""Bytes of a request's body."""


class BodyLimit:
    """Reads a request's body before the application does, and hands it on if it is not too large.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client is gone
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MOST_BYTES:
                problem = Problem.of(
                    413, "body too large", f"a body has at most {MOST_BYTES:,} bytes."
                )
                refusal = JSONResponse(problem.model_dump(), 413, media_type=PROBLEM)
                await refusal(scope, receive, send)
                return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def given() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, given, send)
