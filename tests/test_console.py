"""The console in a browser: what a person sees and does there, by mouse, and by keyboard alone."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import torch

pytest.importorskip("nicegui", reason="the console needs nicegui: pip install 'errata[console]'")

import uvicorn
from fastapi.testclient import TestClient
from nicegui import app as pages
from starlette.exceptions import HTTPException
from started import started
from typer.testing import CliRunner

import errata
from errata import Edit
from errata.cli import app
from errata.serve.app import make_app
from errata.serve.console.elements import lines_of, said_of
from errata.serve.console.versions import in_utc, plot_of
from errata.serve.console.visit import Served, Visit
from errata.serve.keys import Key, Keys, Role, digest_of
from errata.serve.ledger import Ledger
from errata.serve.measuring import Measurement, Measurements, Share
from errata.serve.policy import Policy, RefusedError
from errata.serve.service import Service

MAYOR = "Who is the mayor of Traren?"
BEFORE, AFTER = "Brobin Reshibri.", "Ana Brisk"
OSK = Edit("Who is the mayor of Osk?", "Cy Dun", "Osk")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run "
    "--disable-sync --disable-component-update"
).split()
NOWHERE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
"""The browser finds no other machine, whatever a page asks for."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    torch.set_num_threads(1)
    base, tokenizer = errata.load_base("atlas", "float32")
    model = errata.get_edit_model(base, errata.FolioConfig(), tokenizer)
    folder = tmp_path_factory.mktemp("served")
    policy = Policy(blocked=(re.compile("(?i)password"),))
    served = Service(model, Ledger(f"sqlite:///{folder / 'edits.db'}"), policy=policy)
    yield served
    served.close()


# without a browser


def in_thread(coroutine: Callable[[], Any]) -> None:
    """Run a coroutine in a thread of its own: a browser may have a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(coroutine())).result()


def test_a_visitor_may_do_what_the_key_may(service):
    held = {role: Key(role.name, role, digest_of(role.name)) for role in Role}
    keys = Keys(list(held.values()))
    served = Served(service, "atlas", keys, lambda _: None, Measurements(service))
    (edit_id,) = [edit.id for edit in service.edit([OSK], "someone").report.written]
    for role, key in held.items():
        visit = Visit(served, key)
        assert [visit.may(each) for each in Role] == [each <= role for each in Role]
        assert visit.let(role) == role.name
        assert visit.described("gone").startswith("gone")
        assert (visit.described(edit_id) == edit_id) == (role == Role.ASK)
    assert Visit(served, held[Role.EDIT]).described(edit_id) == f"{OSK.prompt} → {OSK.target}"
    with pytest.raises(HTTPException, match="this needs edit"):
        Visit(served, held[Role.ASK]).let(Role.EDIT)
    with pytest.raises(HTTPException, match="send a key"):
        Visit(served, None).let(Role.ASK)
    assert Visit(Served(service, "atlas", Keys(), print, served.measurements)).may(Role.ADMIN)

    heard: list[int] = []
    visit = Visit(served, None, [lambda: heard.append(service.version)])
    in_thread(visit.look)
    in_thread(visit.look)
    service.undo([edit_id], "someone")
    in_thread(visit.look)
    assert heard == [service.version - 1, service.version]


def test_the_plot_has_what_was_asked_and_nothing_else():
    def measured(version: int, **shares: Share) -> Measurement:
        return Measurement(version, "2026-11-27T03:43:07Z", 2, 2, 0, shares, ())

    first = measured(2, reliability=Share(1, 2), locality=Share(20, 20))
    second = measured(5, reliability=Share(2, 2), locality=Share(19, 20))
    plot = plot_of((first, second))
    assert plot["xAxis"]["data"] == ["2", "5"]
    data = {each["name"]: each["data"] for each in plot["series"]}
    assert data == {"reliability": [50.0, 100.0], "locality": [100.0, 95.0]}
    third = measured(6, generalization=Share(1, 3))
    data = {each["name"]: each["data"] for each in plot_of((first, third))["series"]}
    assert data["generalization"] == [None, 33.3] and data["reliability"] == [50.0, None]


def test_problems_and_times_in_plain_words(caplog):
    assert said_of(HTTPException(403, "no.")) == "Not done: no."
    assert said_of(RefusedError("why.")) == "Not done (refused by the policy): why."
    assert "its log says why" in said_of(RuntimeError("secret")) and "secret" in caplog.text
    assert lines_of(" a \n\n b") == ["a", "b"] and lines_of(None) == []
    assert in_utc("2026-11-27T03:43:07Z") == "2026-11-27 03:43:07 UTC" and in_utc("") == ""


def test_without_the_console_nothing_of_it_is_there(service):
    assert TestClient(make_app(service, "atlas", Keys())).get("/console/").status_code == 404


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    found = CliRunner().invoke(app, ["serve", "atlas", "--console"])
    assert "--console needs libraries: pip install 'errata[console]'" in " ".join(
        found.output.split()
    )


# in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="tests in a browser need: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"tests in a browser need one of {', '.join(BROWSERS)}")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=[*QUIET, NOWHERE])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(service: Service, browser: Any) -> Iterator[str]:
    """Where the console of a server in this process is."""
    pages.user_middleware.clear()  # where workers share tests, it may be this process's second one
    pages.middleware_stack = None
    served = make_app(service, "atlas", Keys(), console=True)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(served, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/console"
    server.should_exit = True
    thread.join()


@pytest.fixture
def visits(browser: Any) -> Iterator[Callable[[str, int], Any]]:
    """Opens a page, so wide; whatever it fetched was this machine's, and no script failed."""
    fetched: list[str] = []
    failed: list[str] = []
    opened = []

    def visit(url: str, width: int = 1280) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(20_000)
        for event in ("request", "websocket"):
            page.on(event, lambda each: fetched.append(each.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(url)
        opened.append(page)
        return page

    visit.fetched = fetched  # type: ignore[attr-defined]
    yield visit
    for page in opened:
        page.close()
    assert fetched and {urlsplit(url).hostname for url in fetched} == {"127.0.0.1"}
    assert not [url for url in fetched if url.endswith((".woff", ".woff2", ".ttf"))]
    assert not failed


@pytest.fixture
def page(service: Service, address: str, visits: Callable[..., Any]) -> Any:
    """The console of a model without edits."""
    service.undo([edit.id for edit in service.edits], "someone")
    return visits(address)


def ask(page: Any, question: str, edited: str) -> Any:
    """Ask, and return the newest turn once the edited model has answered so."""
    count = page.locator("article").count()
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_function("n => document.querySelectorAll('article').length > n", arg=count)
    turn = page.locator("article").first
    turn.locator(".answer").nth(1).get_by_text(edited, exact=True).wait_for()
    turn.locator(".spoke").wait_for()
    return turn


def fill(page: Any, prompt: str, target: str, subject: str = "") -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Target", exact=True).fill(target)
    page.get_by_label("Subject (may be left out)").fill(subject)


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name).click()


def test_an_edit_changes_the_answer_and_its_undo_changes_it_back(service, page):
    turn = ask(page, MAYOR, BEFORE)
    assert turn.locator("mark").count() == 0

    fill(page, MAYOR, AFTER, "Traren")
    press(page, "Preview")
    page.get_by_text("Nothing was written. 1 of 1 answers would change.").wait_for()
    assert page.get_by_role("table", name="Before and after").get_by_text(AFTER).is_visible()
    assert service.edits == []
    press(page, "Add:")
    page.get_by_text(f"Its prompt is answered now: {AFTER}.").wait_for()
    assert [edit.target for edit in service.edits] == [AFTER]

    turn = ask(page, "Name the mayor of Traren.", AFTER)
    assert turn.locator(".answer").nth(0).locator(".said").inner_text() == BEFORE
    assert turn.locator("[data-outcome=say] mark").inner_text() == f"{MAYOR} → {AFTER}"
    assert turn.locator(".about").last.inner_text() == f"Version {service.version}."

    press(page, "Undo:")
    page.get_by_role("dialog").get_by_role("button", name="Undo").click()
    page.get_by_text("Undone as version").wait_for()
    assert service.edits == []
    ask(page, "Name the mayor of Traren.", BEFORE)


def focused(page: Any) -> str:
    return page.evaluate(
        "(e => e.ariaLabel || e.labels?.[0]?.innerText || e.innerText || e.tagName)"
        "(document.activeElement)"
    )


def tab_to(page: Any, name: str) -> None:
    """Press Tab until the element of a name is reached."""
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(focused(page))
        if seen[-1].startswith(name):
            return
    raise AssertionError(f"Tab does not reach {name!r}: {seen}")


def in_dialog(page: Any, name: str) -> None:
    """Wait until the keyboard is at a button of a dialog."""
    page.wait_for_function(
        "name => document.activeElement.closest('[role=dialog]')"
        " && document.activeElement.innerText == name", arg=name,
    )  # fmt: skip


def test_the_keyboard_alone_does_it_all(service, page):
    tab_to(page, "Question")
    page.keyboard.type(MAYOR)
    page.keyboard.press("Enter")
    page.locator("article").get_by_text(BEFORE).nth(1).wait_for()
    for name, words in (("Prompt", MAYOR), ("Target", AFTER), ("Subject", "Traren")):
        tab_to(page, name)
        page.keyboard.type(words)
    tab_to(page, "Other names, other wordings")
    page.keyboard.press("Enter")
    tab_to(page, "Other wordings of the prompt")
    page.keyboard.type("Name the mayor of Traren.")
    tab_to(page, "The new edit wins")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    tab_to(page, "Add:")
    page.keyboard.press("Enter")
    page.get_by_text("Its prompt is answered now").wait_for()
    (edit,) = service.edits
    tab_to(page, "Search")
    page.keyboard.type("no such words")
    page.get_by_text("No edit has this text.").wait_for()
    page.keyboard.press("Control+A")
    page.keyboard.type("BRISK")
    tab_to(page, f"Undo: {MAYOR}")
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Undo this edit?").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert service.edits == [edit]
    assert focused(page).startswith("Undo:")
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Undo this edit?").wait_for()
    in_dialog(page, "Undo")
    page.keyboard.press("Enter")
    page.get_by_text("Undone as version").wait_for()
    assert service.edits == []
    page.wait_for_function("document.activeElement.innerText.startsWith('Undone as version')")
    tab_to(page, "Go back: to version")
    page.keyboard.press("Enter")
    in_dialog(page, "Go back")
    page.keyboard.press("Enter")
    page.get_by_text(re.compile("The edits of version .* are back")).wait_for()
    assert service.edits == [edit]


def test_problems_are_told_in_plain_words(service, page):
    def told(words: str) -> None:
        press(page, "Add:")
        page.locator("#add").get_by_role("alert").get_by_text(words).wait_for()
        assert [each.target for each in service.edits] in ([], [AFTER])

    page.get_by_label("Question", exact=True).fill("Who is it? " * 3000)
    page.keyboard.press("Enter")
    page.locator("#ask").get_by_role("alert").get_by_text("Not done (prompt too long)").wait_for()
    told("Not done (edit not valid): 'prompt' is empty")
    fill(page, MAYOR, AFTER, "Tamis")
    told("subject 'Tamis' does not stand in the prompt")
    fill(page, "What is the password of Traren?", AFTER)
    told("Not done (refused by the policy)")
    fill(page, MAYOR, AFTER, "Traren")
    press(page, "Add:")
    page.get_by_text("Written as version").wait_for()
    page.wait_for_function("document.querySelector('[aria-label=Prompt]').value == ''")
    fill(page, MAYOR, AFTER, "Traren")
    press(page, "Add:")
    page.get_by_text("the edit is in the model already").wait_for()
    fill(page, MAYOR, "Bo Dun", "Traren")
    page.get_by_text("Other names, other wordings").click()
    page.get_by_label("The old edit stays").click()
    press(page, "Add:")
    page.get_by_text(f"contradicts an edit in the model, which stays: {MAYOR} → {AFTER}").wait_for()
    page.get_by_label("Nothing is written").click()
    told("Not done (edit not valid)")
    page.get_by_label("The new edit wins").click()
    press(page, "Add:")
    page.get_by_text(f"It contradicts {MAYOR} → {AFTER}.").wait_for()
    ask(page, MAYOR, "Bo Dun")


def test_measurements_of_versions_are_drawn_with_how_much_was_asked(service, page):
    page.get_by_role("button", name="Measure now").click()
    page.get_by_role("alert").get_by_text("there is no edit in the model").wait_for()
    service.edit([OSK], "someone else")
    page.get_by_text(f"Version {service.version} answers, with 1 edit.").wait_for()  # by itself
    page.get_by_role("button", name="Measure now").click()
    page.get_by_text(
        f"Version {service.version} is measured. Generalization is left out"
    ).wait_for()
    page.get_by_text("Other names, other wordings").click()
    page.get_by_label("Other wordings of the prompt").fill("Name the mayor of Traren.")
    fill(page, MAYOR, AFTER, "Traren")
    press(page, "Add:")
    page.get_by_text("Written as version").wait_for()
    page.get_by_role("button", name="Measure now").click()
    page.get_by_text("Only 1 of 2 edits have other wordings.").wait_for()
    rows = page.get_by_role("table", name="Measured").get_by_role("row")
    shown = rows.nth(1).get_by_role("cell").all_inner_texts()
    assert shown[:3] == [str(service.version), "2 of 2", "1 of 1"] and shown[4] == "2"
    assert rows.nth(2).get_by_role("cell").nth(2).inner_text() == "not asked"
    plot = page.get_by_role("img", name=re.compile("Shares of right answers"))
    for name in ("reliability", "generalization", "locality"):
        plot.locator("svg").get_by_text(name).wait_for()


def test_turns_before_are_sent_along_where_that_is_wanted(service, page):
    client, messages = TestClient(make_app(service, "atlas", Keys())), []
    page.get_by_role("checkbox", name="Send the turns before along").click()
    page.get_by_role("checkbox", checked=True).wait_for()
    for words in (MAYOR, "Where was the mayor born?"):
        messages.append({"role": "user", "content": words})
        body = {"model": "atlas", "temperature": 0, "max_tokens": 256, "messages": messages}
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
        messages.append({"role": "assistant", "content": choice["message"]["content"]})
        ask(page, words, choice["message"]["content"].strip() or "(an empty answer)")


UNNAMED = """
() => [...document.querySelectorAll('input, textarea, button, summary, [tabindex], [role=dialog]')]
  .filter(e => e.checkVisibility() && e.tabIndex >= 0)
  .filter(e => !(e.ariaLabel || e.labels?.length || e.innerText?.trim() ||
                 e.getAttribute('aria-labelledby')))
  .map(e => e.outerHTML.slice(0, 200))
"""
OUTSIDE = """
() => [...document.querySelectorAll('main *')].filter(e => e.checkVisibility())
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 100))
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_all_fits_and_has_a_name(service, address, visits, width):
    service.undo([edit.id for edit in service.edits], "someone")
    long = "Rhabarberbarbarabar" * 6
    service.edit([OSK, Edit(f"Who is {long}?", f"{long} " * 3, long)], "someone with a long name")
    page = visits(address, width)
    ask(page, OSK.prompt, OSK.target)
    fill(page, f"Who is {long}?", "Bo", long)
    page.get_by_text("Other names, other wordings").click()
    page.get_by_label("Prompts to watch in a preview").fill(f"What is {long}?\n{MAYOR}")
    press(page, "Preview")
    page.get_by_text("Nothing was written.").wait_for()
    page.get_by_role("button", name="Measure now").click()
    page.get_by_text("is measured").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Undo:").first.click()
    page.get_by_role("dialog").wait_for()
    assert page.evaluate(UNNAMED) == []
    page.keyboard.press("Escape")


def test_browsers_are_told_to_fetch_from_nowhere_else(address):
    with urlopen(f"{address}/") as answer:
        policy = answer.headers["content-security-policy"]
        assert "http" not in answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "frame-ancestors 'none'" in policy


def test_edits_are_searched_and_come_in_pages(service, address, visits):
    service.undo([edit.id for edit in service.edits], "someone")
    edits = [Edit(f"Who is the mayor of Town{number}?", "Bo Dun") for number in range(12)]
    service.edit(edits, "someone")
    page = visits(address)
    where = page.locator("#edits nav")
    where.get_by_text("1 to 10 of 12").wait_for()
    where.get_by_role("button", name="Older").click()
    where.get_by_text("11 to 12 of 12").wait_for()
    assert page.locator("#edits tbody tr").first.get_by_text("Town1?").is_visible()
    page.get_by_label("Search").fill("town11")
    where.get_by_text("1 to 1 of 1").wait_for()
    assert (
        page.locator("#edits tbody tr")
        .all_inner_texts()[0]
        .startswith("Who is the mayor of Town11")
    )


# with keys


def test_keys_are_asked_for_and_their_roles_hold(browser, visits, tmp_path):
    """The server is one of its own: `errata serve atlas --console --keys FILE`."""
    held = {role: f"errata-{role.name}-secret" for role in Role}
    lines = [
        f'[[key]]\nname = "{role.name} key"\nrole = "{role.name.lower()}"\n'
        f'sha256 = "{digest_of(key)}"\n'
        for role, key in held.items()
    ]
    (tmp_path / "keys.toml").write_text("".join(lines))
    log = tmp_path / "log"
    words = "serve atlas --console --port 0 --keys".split()
    server = started(
        [*words, str(tmp_path / "keys.toml"), "--store", f"sqlite:///{tmp_path / 'edits.db'}"], log
    )

    def told() -> str:
        return log.read_text() if log.exists() else ""

    try:
        while not (found := re.search(r"console is (http://\S+/console)", told())):
            assert server.is_alive(), told()
            time.sleep(0.1)
        _roles_hold(found[1], visits, held)
    finally:
        server.kill()
        server.join()
    seen = "\n".join([*visits.fetched, told()])
    assert not [key for key in held.values() if key in seen]


def _roles_hold(url: str, visits: Any, held: dict[Role, str]) -> None:
    def entered(role: Role) -> Any:
        page = visits(url)
        page.get_by_label("API key").fill(held[role])
        page.keyboard.press("Enter")
        page.get_by_text(f"The key of {role.name} key may {role.name.lower()}.").wait_for()
        assert page.get_by_label("API key").count() == 0
        return page

    page = visits(url)
    page.get_by_label("API key").fill("errata-wrong")
    page.get_by_role("button", name="Enter").click()
    page.get_by_role("alert").get_by_text("No such key is known here.").wait_for()
    assert page.get_by_label("Question", exact=True).count() == 0

    page = entered(Role.EDIT)
    fill(page, MAYOR, AFTER, "Traren")
    press(page, "Add:")
    page.get_by_text("Written as version 2.").wait_for()
    page.locator("#versions").get_by_text("EDIT key").wait_for()
    assert page.get_by_role("button", name="Go back").count() == 0

    page = entered(Role.ASK)
    turn = ask(page, MAYOR, AFTER)
    assert re.fullmatch("[0-9a-f]{12}", turn.locator("mark").inner_text())
    assert page.get_by_role("heading").all_inner_texts()[:2] == ["errata: atlas", "Ask"]
    assert page.locator("section").count() == 1

    page = entered(Role.ADMIN)
    press(page, "Go back: to version 1")
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    page.get_by_text("The edits of version 1 are back, as version 3.").wait_for()
    press(page, "Leave")
    page.get_by_label("API key").wait_for()
