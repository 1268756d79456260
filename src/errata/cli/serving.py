"""`Served`: what `errata serve` serves, from which a server can be made on any machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from errata.cli import screen
from errata.errors import UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from errata import EditModel
    from errata.cli.choices import Choices
    from errata.serve.keys import Keys
    from errata.serve.service import Service


@dataclass(frozen=True)
class Served:
    """What is served, and how: the options, from which a server can be made on any machine."""

    model: str
    store: str
    keys: Path | None
    rate: str | None
    policy: Path | None
    name: str
    method: str | None
    settings: tuple[str, ...]
    preset: str | None
    snapshots: Path | None
    snapshot_every: int
    batch: int
    lanes: int
    settle: str | None
    settle_after: float
    settle_cases: Path | None
    console: bool
    dtype: str
    device_map: str | None

    def keys_held(self) -> Keys:
        """Read the keys."""
        from errata.serve.keys import Keys, rate_of, read_keys

        most = None if self.rate is None else rate_of(self.rate)
        return Keys(rate=most) if self.keys is None else read_keys(self.keys, most)

    @property
    def on_gpu(self) -> bool:
        """Whether each server wants a GPU."""
        return self.device_map is not None and self.device_map != "cpu"

    def absolute(self) -> Served:
        """Return the same with paths that do not depend on the working directory.

        Raises:
            UsageError: it cannot be served by replicas.
        """
        import sqlalchemy as sa

        if self.console:
            raise UsageError("--console keeps a connection to one server; leave --executor out.")
        url = sa.make_url(self.store)
        if url.get_backend_name() == "sqlite":
            if os.environ.get("RAY_ADDRESS"):
                raise UsageError(
                    "replicas on several machines need one ledger that all can reach: give "
                    "--store postgresql+psycopg://..."
                )
            if url.database in (None, "", ":memory:"):
                raise UsageError("replicas need one ledger: give a file, --store sqlite:///FILE.")
            url = url.set(database=str(Path(url.database).resolve()))
        model = str(Path(self.model).resolve()) if Path(self.model).exists() else self.model
        paths = {
            name: path.resolve()
            for name in ("keys", "policy", "snapshots", "settle_cases")
            if (path := getattr(self, name)) is not None
        }
        return replace(self, model=model, store=url.render_as_string(False), **paths)

    def made(self) -> tuple[FastAPI, Service]:
        """Open the model and its ledger; return the application and what it serves."""
        from errata.cases import read_cases
        from errata.cli.choices import Choices
        from errata.serve.app import make_app
        from errata.serve.ledger import Ledger
        from errata.serve.policy import Policy, read_policy
        from errata.serve.service import Service
        from errata.serve.settling import Promise
        from errata.serve.snapshots import Snapshots

        rules = Policy() if self.policy is None else read_policy(self.policy)
        held = self.keys_held()
        choices = Choices(self.method, self.settings, self.preset)
        settling = None if self.settle is None else Choices(self.settle)
        cases = [] if self.settle_cases is None else read_cases(self.settle_cases)
        ledger = Ledger(self.store)
        folder = self.snapshots or ledger.folder_beside("snapshots")
        edited = _opened(self.model, choices, self.dtype, self.device_map)
        promise = None
        if settling is not None:
            promise = Promise(settling.config(edited.base.config), cases, self.settle_after)
        with screen.steps() as progress:
            told = partial(progress, "writing edits")
            service = Service(
                edited, ledger, self.batch, self.lanes, told, rules,
                Snapshots(folder, self.snapshot_every) if folder else None, promise,
            )  # fmt: skip
        return make_app(service, self.name, held, self.console), service


def _opened(model: str, choices: Choices, dtype: str, device_map: str | None) -> EditModel:
    """Open a folder of edits, or a base model with a method for edits to come."""
    import errata
    from errata.cli.opening import edits_of, load_base, open_artifact

    if edits_of(model) is not None:
        edited = open_artifact(model, dtype, device_map)
        choices.check(edited, Path(model))
        return edited
    base, tokenizer = load_base(model, dtype, device_map)
    return errata.get_edit_model(base, choices.config(base.config), tokenizer)
