"""`Visit`: an open page of the console: whose it is, what they may do, who hears of changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from errata.edit import Edit
from errata.errors import UnknownNameError
from errata.serve.answering import Answering
from errata.serve.keys import Key, Keys, Role
from errata.serve.measuring import Measurements
from errata.serve.service import Service

Listener = Callable[[], Awaitable[None] | None]
"""Called when the model has changed."""


@dataclass(frozen=True)
class Served:
    """What all pages of a server share.

    Attributes:
        service: the served model.
        name: the edited model's.
        keys: who may do what.
        answered: told of each request that was answered.
        measurements: those of the served model.
    """

    service: Service
    name: str
    keys: Keys
    answered: Callable[[Answering], None]
    measurements: Measurements


@dataclass
class Visit:
    """An open page.

    Attributes:
        served: what the page is of.
        key: that of whoever looks at it; None where the server has no keys.
        listeners: called when the model has changed.
        version: the one that they were last told of.
    """

    served: Served
    key: Key | None = None
    listeners: list[Listener] = field(default_factory=list)
    version: int = 0

    @property
    def service(self) -> Service:
        """The served model."""
        return self.served.service

    def may(self, role: Role) -> bool:
        """Return whether what a role may do is allowed here."""
        keys = self.served.keys
        return not keys or (self.key is not None and self.key.role >= role)

    def let(self, role: Role) -> str:
        """Do one thing that a role may do; return the actor's name.

        Raises:
            HTTPException: it is not allowed, or too much was done.
        """
        return self.served.keys.let(self.key, role)

    async def look(self) -> None:
        """Tell the listeners if the model has changed, by whomever."""
        if self.service.version != self.version:
            self.version = self.service.version
            for each in self.listeners:
                if (told := each()) is not None:
                    await told

    def described(self, edit_id: str) -> str:
        """Return an edit in words: its id alone to who may not read edits, or where it is gone."""
        try:
            return in_words(self.service.edit_of(edit_id)) if self.may(Role.EDIT) else edit_id
        except UnknownNameError:
            return f"{edit_id} (not in the model any more)"


def in_words(edit: Edit) -> str:
    """Return an edit's prompt and target in a line."""
    return f"{edit.prompt} → {edit.target}"
