"""`Service`: what can be done with a served model: change it, go back, look at what was done.

A change is written into the model and into the ledger while nothing is answered, or into neither:
who was told that an edit is in will find it there after a crash, and no one is answered by an edit
that the ledger does not have. What other servers append to the ledger is followed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from errata.conflicts import OnConflict
from errata.edit import Edit
from errata.errors import StorageError, UnknownNameError, suggest
from errata.model import EditModel
from errata.report import EditReport, EditResult
from errata.serve import ledger as actions
from errata.serve.engine import Engine
from errata.serve.following import Follower
from errata.serve.ledger import BehindError, Ledger
from errata.serve.policy import Policy, Proposal, RefusedError
from errata.serve.preview import Preview, questions, tried
from errata.serve.restoring import begin, bring_to, by_id
from errata.serve.settling import Promise, Settler
from errata.serve.snapshots import Snapshots

log = logging.getLogger(__name__)

ITSELF = "errata"
"""The actor of what the server does by itself."""
ALLOWING = Policy()
"""Refuses only edits that would do something else than meant."""


@dataclass(frozen=True)
class Changed:
    """What became of a change.

    Attributes:
        version: that of the model after it.
        report: of edits that were written; None of another change.
    """

    version: int
    report: EditReport | None = None


class Service:
    """A model, its engine and its ledger.

    Args:
        model: the model to serve. Its edits, if it has any, begin an empty ledger; those of a
            ledger that has begun are written into it.
        ledger: where changes are kept.
        batch, lanes: see `Engine`.
        progress: called with (edits written, edits in the ledger) while it starts.
        policy: what is not written, whoever asks.
        snapshots: spare a start most of the writing; None keeps none.
        promise: how edits are settled in idle time; None: they are not.

    Raises:
        BaseMismatchError: the ledger is that of another model, or of another method.
        StorageError: the ledger cannot be used.
    """

    def __init__(
        self,
        model: EditModel,
        ledger: Ledger,
        batch: int = 16,
        lanes: int = 2,
        progress: Callable[[int, int], None] = lambda done, total: None,
        policy: Policy = ALLOWING,
        snapshots: Snapshots | None = None,
        promise: Promise | None = None,
    ) -> None:
        self.ledger, self.policy, self.snapshots = ledger, policy, snapshots
        self._writing = threading.Lock()
        begin(model, ledger, ITSELF)
        if snapshots is not None:
            model = snapshots.restored(model, ledger)
        version = ledger.version
        self._edits = by_id(ledger.edits_at(version))
        bring_to(model, list(self._edits.values()), progress)
        self.engine = Engine(model, version, batch, lanes)
        self.settler = Settler(self.engine, promise) if promise else None
        self._follower = Follower(ledger, lambda: self.version, self.catch_up)

    @property
    def model(self) -> EditModel:
        """The edited model."""
        return self.engine.model

    @property
    def version(self) -> int:
        """The number of the model's version."""
        return self.engine.version

    @property
    def edits(self) -> list[Edit]:
        """The edits in the model, oldest first."""
        return list(self._edits.values())

    def edit_of(self, edit_id: str) -> Edit:
        """Return an edit by its id.

        Raises:
            UnknownNameError: none in the model has it.
        """
        if edit_id not in self._edits:
            raise UnknownNameError(
                f"no edit in the model has the id {edit_id!r}.{suggest(edit_id, self._edits)}"
            )
        return self._edits[edit_id]

    def edit(
        self, edits: Sequence[Edit], actor: str, on_conflict: OnConflict = "replace"
    ) -> Changed:
        """Write edits: all that are new, or none; see `EditModel.edit`.

        Raises:
            EditError, ConfigError, PromptTooLongError: see there.
            RefusedError: the policy does not allow it; the ledger says so.
            StorageError: the ledger refused; the model is what it was.
        """
        reports = []

        def change(model: EditModel) -> dict[str, Any]:
            held = self.edits
            report = model.edit(edits, check=False, on_conflict=on_conflict)
            self.policy.check(Proposal(report.written, actor, held, report))
            reports.append(report)
            self._edits |= {edit.id: edit for edit in report.written}
            written = [edit.to_dict() for edit in report.written]
            return {"edits": written, "conflicts": report.conflicts} if written else {}

        try:
            return Changed(self._change(actor, actions.EDIT, change), reports[-1])
        except RefusedError as error:
            body = {"edits": [], "refused": [edit.to_dict() for edit in edits], "why": str(error)}
            self._change(actor, actions.REFUSE, lambda _: body)
            raise

    def undo(self, edit_ids: Sequence[str], actor: str) -> Changed:
        """Take edits out; the model is then one that never had them.

        Raises:
            UnknownNameError: no edit has such an id; nothing is undone then.
            StorageError: the ledger refused; the model is what it was.
        """
        ids = list(dict.fromkeys(edit_ids))

        def change(model: EditModel) -> dict[str, Any]:
            for edit_id in ids:
                self.edit_of(edit_id)
            model.undo(ids)
            self._edits = {name: edit for name, edit in self._edits.items() if name not in ids}
            return {"ids": ids} if ids else {}

        return Changed(self._change(actor, actions.UNDO, change))

    def activate(self, version: int, actor: str) -> Changed:
        """Bring back the edits of an earlier version, or of a later one: as a new version.

        Raises:
            UnknownNameError: there is no such version.
            StorageError: the ledger refused; the model is what it was.
        """

        def change(model: EditModel) -> dict[str, Any]:
            self._bring_to(model, version)
            return {"version": version}

        return Changed(self._change(actor, actions.ACTIVATE, change))

    def _change(
        self, actor: str, action: str, change: Callable[[EditModel], dict[str, Any]]
    ) -> int:
        """Change the model and append it to the ledger, or do neither; return the version.

        Args:
            change: changes the model and `self._edits`, and returns what the ledger says of it;
                nothing where nothing has changed.
        """

        def changed(model: EditModel) -> int:
            before, version = self._edits, self.version
            try:
                while True:
                    self._edits = dict(self._edits)
                    body = change(model)
                    if not body:
                        return version
                    try:
                        entry = self.ledger.append(actor, action, body, after=version)
                    except BehindError:  # another server was first: its changes come before this
                        version = self.ledger.version
                        self._bring_to(model, version)
                        continue
                    if self.snapshots is not None and self.snapshots.due(entry.version):
                        self.snapshots.write(model, entry)
                    return entry.version
            except BaseException:
                self._edits = before
                bring_to(model, list(before.values()))
                raise

        with self._writing:
            return self.engine.change(changed)

    def catch_up(self) -> None:
        """Write what other servers have appended to the ledger.

        Raises:
            StorageError: the ledger cannot be used.
        """

        def change(model: EditModel) -> int:
            version = self.ledger.version
            if version != self.version:
                self._bring_to(model, version)
            return version

        with self._writing:
            self.engine.change(change)

    def _bring_to(self, model: EditModel, version: int) -> None:
        wanted = by_id(self.ledger.edits_at(version))
        bring_to(model, list(wanted.values()))
        self._edits = wanted

    @contextmanager
    def steady(self) -> Iterator[int]:
        """Keep the version, which is given, within a `with` block: changes wait, answers do not."""
        with self._writing:
            yield self.version

    def check(self, edits: Sequence[Edit]) -> list[EditResult]:
        """Ask the model the prompts of edits, see `EditModel.check_edits`."""
        return self.model.check_edits(edits)

    def preview(
        self, edits: Sequence[Edit], prompts: Sequence[str], actor: str, on_conflict: OnConflict
    ) -> Preview:
        """Try edits: ask before and after, and take them out again; nothing is answered meanwhile.

        Raises:
            EditError, ConfigError, PromptTooLongError: see `EditModel.edit`.
        """
        asked, found = questions(edits, prompts, self.edits), []

        def change(model: EditModel) -> int:
            refusal = partial(self.policy.refusal, actor, self.edits)
            try:
                found.append(tried(model, edits, asked, on_conflict, refusal))
            finally:
                bring_to(model, self.edits)
            return self.version

        with self._writing:
            self.engine.change(change)
        return found[0]

    def history(self, after: int = 0, most: int | None = None) -> list[dict[str, Any]]:
        """Return the entries of the ledger, ready for JSON, without what the edits say."""
        return [entry.summary() for entry in self.ledger.entries(after, most)]

    def is_ready(self) -> bool:
        """Return whether the ledger can be used and is where the model is."""
        try:
            return self.ledger.version == self.version
        except StorageError:
            return False

    def close(self) -> None:
        """Answer what is running, keep a snapshot of what has changed, then stop."""
        if self.settler is not None:
            self.settler.close()
        self.engine.close()
        self._follower.close()
        snapshots = self.snapshots
        if snapshots is not None and self._edits and self.version > snapshots.newest:
            try:
                snapshots.write(self.model, self.ledger.entries(self.version - 1, 1)[0])
            except StorageError as error:
                log.warning("%s", error)
        self.ledger.close()
