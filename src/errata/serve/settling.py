"""`Settler`: while nothing is asked, moves a served model's edits into weights, and judges that.

An edit is live at once, beside the weights, and stays there. When a server has been idle for a
while, the settler copies the base model, writes the version's edits into the copy's weights where
that makes nothing worse (see `errata.consolidation`), puts the others beside them, and lets that
model answer. The next change of the edits takes it away again, so that nothing waits for it and
nothing of it has to be kept: the ledger says all.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from errata.cases import Case
from errata.config import MethodConfig
from errata.consolidation import (
    Consolidation,
    Expected,
    check_settles,
    settle,
    with_others,
)
from errata.edit import Edit
from errata.errors import ErrataError
from errata.model import EditModel
from errata.serve.engine import Engine, Settled

log = logging.getLogger(__name__)

LOOKS = 0.25
"""Seconds between two looks at whether the server is idle."""


@dataclass(frozen=True)
class Promise:
    """What is asked before and after, and how long the server must have been idle.

    Attributes:
        config: the settings of a method that changes weights.
        cases: edits with their rewordings, and prompts whose answers must stay; prompts that the
            model writes are taken where there are none such.
        idle: seconds without a request or a change after which it begins.
    """

    config: MethodConfig
    cases: Sequence[Case] = ()
    idle: float = 60.0

    def rewordings(self, edits: Sequence[Edit]) -> dict[str, list[str]]:
        """Return the rewordings of edits, by their ids."""
        found = defaultdict[tuple[str, str], list[str]](list)
        for case in self.cases:
            found[case.edit.prompt, case.edit.target] += case.rephrases
        return {edit.id: found[edit.prompt, edit.target] for edit in edits}

    @property
    def kept(self) -> list[str]:
        """The prompts whose answers must stay."""
        return [probe.prompt for case in self.cases for probe in case.locality]


@dataclass
class Settling:
    """What a settler does, and what it found.

    Attributes:
        state: `waiting` until the server is idle, `working`, `settled`: its model answers,
            `refused`: no edit of this version could be settled, or `failed`.
        version: whose edits it is about.
        what, done, total: the work that goes on.
        found: what became of the edits.
        problem: why it failed.
    """

    state: Literal["waiting", "working", "settled", "refused", "failed"] = "waiting"
    version: int = 0
    what: str = ""
    done: int = 0
    total: int = 0
    found: Consolidation = field(default_factory=Consolidation)
    problem: str | None = None


class _OvertakenError(Exception):
    """The model has changed meanwhile, or the server ends."""


class Settler:
    """A thread that settles the edits of an engine's model while nothing else goes on.

    Args:
        engine: whose model it is.
        promise: how, and when.

    Raises:
        ConfigError: the method keeps its edits beside the weights, or must be trained first.
    """

    def __init__(self, engine: Engine, promise: Promise) -> None:
        self.engine, self.promise = engine, promise
        self._now = Settling()
        check_settles(self._weights())
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="errata-settling", daemon=True)
        self._thread.start()

    @property
    def now(self) -> Settling:
        """What it does, or found, about the edits that are in the model now."""
        now = self._now
        is_old = now.state not in ("waiting", "working") and now.version != self.engine.version
        return Settling() if is_old else now

    def close(self) -> None:
        """End the thread, after the step that it is at."""
        self._closing.set()
        self._thread.join()

    def _weights(self) -> EditModel:
        """Return a model of its own to write into."""
        base = copy.deepcopy(self.engine.base)
        return EditModel(base, self.promise.config, self.engine.model.tokenizer)

    def _run(self) -> None:
        while not self._closing.wait(LOOKS):
            engine = self.engine
            changes = engine.changes
            is_due = self.now.state == "waiting" and engine.idle_seconds >= self.promise.idle
            if not is_due or not engine.model.edits:
                continue
            self._now = now = Settling("working", engine.version)
            try:
                self._settle(now, changes)
            except _OvertakenError:
                self._now = Settling()
            except Exception as error:
                if not isinstance(error, ErrataError):
                    log.exception("settling version %d failed", now.version)
                now.state, now.problem = "failed", str(error) or repr(error)

    def _settle(self, now: Settling, changes: int) -> None:
        live = self.engine.model

        def go_on(what: str, done: int, total: int) -> None:
            """Say what goes on, and wait while anything is asked; stop where it is in vain."""
            now.what, now.done, now.total = what, done, total
            while not self._closing.is_set() and self.engine.changes == changes:
                if self.engine.idle_seconds > 0:
                    return
                self._closing.wait(LOOKS)
            raise _OvertakenError

        edits, promise = list(live.edits), self.promise
        expected = Expected.of(live, promise.rewordings(edits), promise.kept, go_on)
        weights = self._weights()
        now.found = settle(weights, edits, expected, go_on)
        if now.found.settled:
            config, tokenizer = live.method.config, live.tokenizer
            model = EditModel(weights.merge_and_unload(), config, tokenizer)
            with_others(model, edits, now.found, expected)
        ids = tuple(edit.id for edit in now.found.settled)
        if not ids:
            now.state = "refused"
            return
        if not self.engine.settle(Settled(model, now.version, ids), changes):
            raise _OvertakenError
        now.state = "settled"
        log.info("%d of %d edits of version %d are settled", len(ids), len(edits), now.version)
