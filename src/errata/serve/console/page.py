"""The console's page: who looks at it, and its parts."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errata.serve.answering import Answering
from errata.serve.console.asking import AskingPart
from errata.serve.console.editing import EditsPart, WritingPart
from errata.serve.console.elements import Notice, button, field, section, text
from errata.serve.console.versions import MeasuringPart, VersionsPart
from errata.serve.console.visit import Served, Visit
from errata.serve.keys import Keys, Role
from errata.serve.measuring import Measurements
from errata.serve.service import Service

PATH = "/console"
STYLE = Path(__file__).with_name("style.css")
LOOKS = 1.0
"""Seconds between two looks at whether someone else has changed the model."""
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data:; "
        b"frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
RECONNECT = 60.0
"""Seconds that a page which has lost its connection is kept for."""


def mount(
    app: FastAPI, service: Service, name: str, keys: Keys, answered: Callable[[Answering], None]
) -> None:
    """Add the console to an application; a process can have one.

    Args:
        app: the application.
        service: the served model.
        name: the edited model's.
        keys: who may do what.
        answered: told of each request that was answered.
    """
    served = Served(service, name, keys, answered, Measurements(service))

    def page() -> None:
        ui.add_css(STYLE.read_text(encoding="utf-8"))
        ui.colors(primary="#1f4e8c")
        content = ui.element("main")
        with content:
            if keys:
                _ask_for_key(served, content)
            else:
                _show(Visit(served))

    nicegui_app.add_middleware(OwnOnly)
    ui.page("/", title=f"errata: {name}", language="en-US", reconnect_timeout=RECONNECT)(page)
    ui.run_with(
        app,
        mount_path=PATH,
        tailwind=False,
        binding_refresh_interval=None,
        show_welcome_message=False,
    )
    app.router.lifespan_context = _quietly(app.router.lifespan_context)


class OwnOnly:
    """Has browsers fetch from this server alone, and show the page in no other site's frame.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, sent)


def _quietly(lifespan: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Start without warnings: NiceGUI looks at all objects, those that torch deprecates, too."""

    @asynccontextmanager
    async def running(app: Any) -> AsyncIterator[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            begun = lifespan(app)
            state = await begun.__aenter__()
        try:
            yield state
        finally:
            await begun.__aexit__(None, None, None)

    return running


def _ask_for_key(served: Served, content: ui.element) -> None:
    """Ask for an API key; it stays in the field until it is sent, and then its holder is known."""
    text("h1", f"errata: {served.name}")

    def enter() -> None:
        key = served.keys.holder((given.value or "").strip())
        given.set_value("")
        if key is None:
            notice.say("No such key is known here. `errata key` makes keys.", wrong=True)
            return
        content.clear()
        with content:
            _show(Visit(served, key))

    with section("Enter", "enter"):
        text("p", "This server has API keys. Yours is sent once, and is not stored.")
        given = field("API key").props("type=password autofocus").on("keydown.enter", enter)
        button("Enter", enter, main=True)
        notice = Notice()


def _show(visit: Visit) -> None:
    """Show what the visitor may use."""
    service, may_edit = visit.service, visit.may(Role.EDIT)
    with ui.element("header"):
        text("h1", f"errata: {visit.served.name}")
        state = text("p", "").props("role=status id=state")
        if visit.key is not None:
            holder, role = visit.key.name, visit.key.role.name.lower()
            text("p", f"The key of {holder} may {role}.")
            button("Leave", ui.navigate.reload)

    def tell() -> None:
        count = len(service.edits)
        state.set_text(
            f"Version {service.version} answers, with {count} edit{'s' if count != 1 else ''}."
        )

    visit.listeners.append(tell)
    with ui.element("div").classes("columns" if may_edit else ""):
        AskingPart(visit)
        if may_edit:
            WritingPart(visit)
    if may_edit:
        EditsPart(visit)
        measuring = MeasuringPart(visit)
        VersionsPart(visit)
        ui.timer(LOOKS, measuring.show)
    ui.timer(LOOKS, visit.look)
