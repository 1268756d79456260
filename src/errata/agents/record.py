"""`AgentRecord`: what an agent's folder says of its game, beside the edits: `agent.json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from errata.errors import ArtifactError, StorageError, UsageError
from errata.storage.files import open_regular, write_whole

RECORD = "agent.json"
MOST = 64 * 2**20
"""Bytes of a record, at most."""


@dataclass
class AgentRecord:
    """What an agent plays, how it learned, and how it played.

    Attributes:
        game: its name in gymnasium.
        route: how it was taught: a method of errata, or a way to prompt.
        model: the model's name, where there are no edits beside the record to say it.
        teacher: where its rules came from.
        seed: of everything random.
        rounds: rounds of its own experience so far.
        steps: of the game that it made in them.
        trials: what was tried in them: {"round", "edits", "mean", "best", "kept"}.
        experience: where its steps led, see `Experience.to_list`.
        played: how it played: {"episodes", "mean", "low", "high", "edits", ...}.
    """

    game: str
    route: str
    model: str = ""
    teacher: str = ""
    seed: int = 0
    rounds: int = 0
    steps: int = 0
    trials: list[dict[str, Any]] = field(default_factory=list)
    experience: list[Any] = field(default_factory=list)
    played: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write it into a folder, whole or not at all.

        Raises:
            StorageError: the disk refused.
        """
        content = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
        try:
            write_whole(folder / RECORD, content.encode())
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror}).") from error

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read the record of a folder; None where there is none.

        Raises:
            ArtifactError: it is damaged.
        """
        path = folder / RECORD
        try:
            with open_regular(path, MOST) as file:
                data = json.loads(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}: cannot be read as an agent's record ({error}).") from None
        texts, numbers = ("game", "route", "model", "teacher"), ("seed", "rounds", "steps")
        kinds: dict[str, type] = dict.fromkeys(texts, str) | dict.fromkeys(numbers, int)
        kinds |= dict.fromkeys(("trials", "experience", "played"), list)
        if (
            not isinstance(data, dict)
            or not {"game", "route"} <= data.keys() <= kinds.keys()
            or not all(isinstance(value, kinds[name]) for name, value in data.items())
        ):
            raise ArtifactError(f"{path}: is no agent's record; remove it, or give another folder.")
        return cls(**data)

    def check(self, folder: Path, **wanted: str | int) -> None:
        """Check that an agent goes on as it was begun.

        Raises:
            UsageError: it plays another game, or was begun by another route, teacher or seed.
        """
        for name, value in wanted.items():
            if (before := getattr(self, name)) != value:
                raise UsageError(
                    f"{folder} was begun with {name} {before!r}, not {value!r}; leave it, or give "
                    "another --out."
                )
