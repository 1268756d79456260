"""Measures `errata serve` under load, while edits come and go; each answer is checked.

    python benchmarks/serve_load.py [--model atlas] [--clients 16] [--seconds 120] [--edits 200]
        [--undone 50] [--about 0.1] [--own-answers] [--port 8123]

A server of its own answers clients that ask one question after the other: a tenth (`--about`) are
the prompts of edits, the others are about something else. First, in turns of ten seconds, all
clients ask the base model, then the edited one, with all edits in it: what edits cost where nothing
is written. A batch of answers takes as long as its longest: with `--own-answers` each edit says
what the base model says without it, so that both models' answers are as long. Then they ask the
edited model while edits are written and undone, evenly over the time.
An answer carries the version of the model that gave it, and which edits spoke. It must be the
target of an edit that this version has, that of the prompt where it is there, or the base model's
answer. A wrong one, or an error, ends with status 1; an answer that an edit of another prompt gave
is the router's mistake, and counted beside.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from errata.atlas import make_cases
from errata.serve.ledger import Ledger

TURN = 10
"""Seconds of a turn, base model or edited one."""
MOST = 24
"""Tokens of an answer, at most."""


@dataclass
class Asked:
    """One request and what came back."""

    prompt: str
    model: str
    begun: float
    seconds: float
    version: int
    text: str
    spoke: tuple[str, ...] = ()
    tokens: int = 0
    error: str = ""


class Clients:
    """Clients that ask, each one question after the other."""

    def __init__(
        self, url: str, about: list[str], others: list[str], share: float, count: int
    ) -> None:
        self.about, self.others, self.share, self.count = about, others, share, count
        self.http = httpx2.AsyncClient(
            base_url=url, timeout=120, limits=httpx2.Limits(max_connections=64)
        )

    async def ask(self, model: str, seconds: float, drawn: int) -> list[Asked]:
        """Ask a model for so long; return what was asked."""
        found: list[Asked] = []
        end = time.monotonic() + seconds

        async def client(number: int) -> None:
            chosen = random.Random(drawn * 1000 + number)
            while time.monotonic() < end:
                prompts = self.about if chosen.random() < self.share else self.others
                found.append(await self.one(model, chosen.choice(prompts)))

        await asyncio.gather(*map(client, range(self.count)))
        return found

    async def one(self, model: str, prompt: str) -> Asked:
        """Ask one question."""
        begun = time.monotonic()
        body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": MOST}
        answer = await self.http.post("/v1/completions", json=body)
        took = time.monotonic() - begun
        if answer.status_code != 200:
            return Asked(prompt, model, begun, took, 0, "", error=answer.text)
        version, choice = int(answer.headers["errata-version"]), answer.json()["choices"][0]
        spoke = tuple(choice["errata"]["edits"]) if choice.get("errata") else ()
        tokens = answer.json()["usage"]["completion_tokens"]
        return Asked(prompt, model, begun, took, version, choice["text"], spoke, tokens)

    async def change(self, edits: list[dict[str, Any]], undone: int, seconds: float) -> list[float]:
        """Write edits and undo some, evenly over the time; return the seconds of each."""
        took, begun, written = [], time.monotonic(), list[str]()
        steps = len(edits) + undone
        for step in range(steps):
            await asyncio.sleep(max(0.0, begun + seconds * step / steps - time.monotonic()))
            started = time.monotonic()
            if step % 5 == 4 and undone:
                undone -= 1
                answer = await self.http.delete(f"/v1/edits/{written.pop(step % len(written))}")
            else:
                answer = await self.http.post("/v1/edits", json=edits[0])
                written.append(edits.pop(0)["id"])
            answer.raise_for_status()
            took.append(time.monotonic() - started)
        return took


async def measured(
    url: str, name: str, options: argparse.Namespace, edits: list[Any]
) -> dict[str, Any]:
    """Run all parts; return the figures and what was asked."""
    cases = make_cases(options.edits)
    subjects = [edit["subject"] for edit in edits]
    others = [
        probe.prompt
        for case in cases
        for probe in case.locality
        if not any(subject in probe.prompt for subject in subjects)
    ]
    about = [edit["prompt"] for edit in edits]
    clients = Clients(url, about, others, options.about, options.clients)
    base, edited = f"{name}-base", name
    await clients.ask(base, 3, 0)
    if options.own_answers:
        own = [await clients.one(base, edit["prompt"]) for edit in edits]
        edits[:] = [
            {**edit, "target": asked.text.strip(" .")}
            for edit, asked in zip(edits, own, strict=True)
        ]
    written = await clients.http.post("/v1/edits", json={"edits": edits})
    written.raise_for_status()
    turns: dict[str, list[Asked]] = {base: [], edited: []}
    for turn in range(options.seconds // TURN):
        for model in (base, edited):
            turns[model] += await clients.ask(model, TURN, turn + 1)
    for edit in edits:
        (await clients.http.delete(f"/v1/edits/{edit['id']}")).raise_for_status()
    asking = asyncio.create_task(clients.ask(edited, options.seconds, 999))
    changes = await clients.change(list(edits), options.undone, options.seconds)
    return {"turns": turns, "arriving": await asking, "changes": changes}


def wrong(
    asked: list[Asked], ledger: Ledger, edits: list[Any], name: str
) -> tuple[list[str], list[str]]:
    """Return what is wrong with answers, and those that an edit of another prompt gave."""
    own = {edit["prompt"]: edit["id"] for edit in edits}
    targets = {edit["id"]: edit["target"].strip(" .") for edit in edits}
    base: dict[str, str] = {}
    for each in asked:
        if each.model != name:
            base.setdefault(each.prompt, each.text)
    inside: dict[int, set[str]] = {}
    there: set[str] = set()
    for entry in ledger.entries():
        there = there | {edit["id"] for edit in entry.body.get("edits", [])}
        there = there - set(entry.body.get("ids", []))
        inside[entry.version] = there
    found, misled = [], []
    for each in asked:
        if each.error:
            found.append(each.error)
            continue
        known = inside[each.version] if each.model == name else set()
        wanted, text = own.get(each.prompt), each.text.strip(" .")
        if wanted in known:
            if each.spoke != (wanted,) or text != targets[wanted]:
                found.append(f"{each.prompt!r}: {each.text!r} by {each.spoke}, not {wanted}")
        elif each.spoke:
            misled.append(f"{each.prompt!r}: {each.text!r} by {each.spoke}")
            if not {*each.spoke} <= known or text != targets[each.spoke[0]]:
                found.append(misled[-1])
        elif each.text != base.get(each.prompt, each.text):
            found.append(f"{each.prompt!r}: {each.text!r}, not {base[each.prompt]!r}")
    return found, misled


def times(asked: list[Asked]) -> str:
    """Return the median and the 99th percentile, in milliseconds."""
    cuts = statistics.quantiles([each.seconds for each in asked], n=100)
    return f"{1000 * cuts[49]:5.0f} {1000 * cuts[98]:5.0f}"


def main() -> None:
    """Start a server, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="atlas")
    for name, value in (
        ("clients", 16),
        ("seconds", 120),
        ("edits", 200),
        ("undone", 50),
        ("port", 8123),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--about", type=float, default=0.1)
    parser.add_argument("--own-answers", action="store_true")
    options = parser.parse_args()
    edits = [case.edit.to_dict() for case in make_cases(options.edits)]
    name = Path(options.model).name
    with tempfile.TemporaryDirectory() as folder:
        store, log = f"sqlite:///{folder}/edits.db", Path(folder) / "log"
        words = ["--port", str(options.port), "--store", store, "--name", name]
        server = subprocess.Popen(
            [sys.executable, "-m", "errata.cli", "serve", options.model, *words],
            stderr=log.open("w"),
        )
        try:
            while not re.search("serving http", log.read_text()):
                if server.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.2)
            found = asyncio.run(measured(f"http://127.0.0.1:{options.port}", name, options, edits))
        finally:
            server.terminate()
            server.wait()
        turns, arriving = found["turns"], found["arriving"]
        asked = [*itertools.chain(*turns.values()), *arriving]
        faults, misled = wrong(asked, Ledger(store), edits, name)
    rates = {}
    print(
        f"{options.clients} clients, {options.about:.0%} of the questions about an edit; "
        "answers and tokens per second, milliseconds at the median and at 99 %"
    )
    for what, part, seconds in (
        ("the base model", turns[f"{name}-base"], options.seconds // TURN * TURN),
        (f"with {len(edits)} edits", turns[name], options.seconds // TURN * TURN),
        (f"while {len(edits)} are written, {options.undone} undone", arriving, options.seconds),
    ):
        rates[what] = len(part) / seconds, sum(each.tokens for each in part) / seconds
        print(f"{what:40} {rates[what][0]:6.1f} {rates[what][1]:6.1f} {times(part)}")
    base, edited, _ = rates.values()
    shares = [one / other for one, other in zip(edited, base, strict=True)]
    print("with edits / base: answers {:.3f}, tokens {:.3f}".format(*shares))
    cuts = statistics.quantiles(found["changes"], n=100)
    print(f"a change takes {1000 * cuts[49]:.0f} ms at the median, {1000 * cuts[98]:.0f} at 99 %")
    print(f"{len(asked)} answers; wrong: {len(faults)}; by another prompt's edit: {len(misled)}")
    if shown := (faults or misled)[:5]:
        print(json.dumps(shown, ensure_ascii=False))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
