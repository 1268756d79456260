"""Loads a verb's MODEL: edits in a folder or on the hub, or a base model. It edits nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from errata.cli import screen
from errata.cli.choices import Choices
from errata.errors import UsageError
from errata.progress import reported_to
from errata.storage.files import folder_named
from errata.storage.locking import locked

if TYPE_CHECKING:
    from errata import LM, EditModel
    from errata.saving import Artifact

Answers = Callable[..., list[str]]
"""Takes prompts and generation options, returns answers."""


TRUSTED: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())
"""The names of the base models whose own code may run, as `--trust-remote-code` gave them."""


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """Show how far a model is loaded; without a network, avoid the hub for a minute."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname

    def heard(what: str, done: int, total: int) -> None:
        show(screen.step_text(f"loading {name}: {what}", done, total))

    with screen.busy(f"loading {name}") as show, reported_to(heard):
        import huggingface_hub

        if not getproxies():
            try:
                socket.getaddrinfo(host, 443)
            except OSError:
                huggingface_hub.constants.HF_HUB_OFFLINE = True
        yield


def load_base(model: str, dtype: str = "auto", device_map: str | None = None) -> tuple[Any, Any]:
    """Load a base model and its tokenizer."""
    import errata

    with loading(model):
        return errata.load_base(model, dtype, device_map, TRUSTED.get())


def edits_of(name: str) -> Path | None:
    """Return the folder of the edits of this name, downloaded if need be; None without any."""
    from errata import hub
    from errata.saving import is_artifact

    if is_artifact(name):
        return Path(name)
    if not hub.may_be_remote(name):
        return None
    with loading(name):
        return hub.find(name)


def read_edits(name: str | Path) -> Artifact:
    """Read the edits of a folder, or of a repository of the hub."""
    from errata import hub
    from errata.saving import is_artifact

    if is_artifact(name) or not hub.may_be_remote(name):
        return hub.read(name)
    with loading(name):
        return hub.read(name)


def open_artifact(
    path: str | Path, dtype: str = "auto", device_map: str | None = None
) -> EditModel:
    """Load an edited model; name its base model before that is loaded."""
    import errata

    artifact = read_edits(path)
    screen.err.print(f"loading {artifact.base_name}, the base model of {path}", markup=False)
    with loading(artifact.base_name):
        return errata.load(artifact, dtype, device_map, TRUSTED.get())


def open_model(model: str, dtype: str = "auto", device_map: str | None = None) -> EditModel | LM:
    """Load an edited model, or a base model by itself."""
    import errata

    if edits_of(model) is not None:
        return open_artifact(model, dtype, device_map)
    return errata.LM(*load_base(model, dtype, device_map))


def open_to_ask(
    model: str, dtype: str = "auto", device_map: str | None = None
) -> tuple[Answers, Answers]:
    """Return the models with and without the edits; for a base model the same twice."""
    import errata

    opened = open_model(model, dtype, device_map)
    return (
        (opened.generate, opened.generate)
        if isinstance(opened, errata.LM)
        else (opened.ask, opened.ask_base)
    )


@contextmanager
def writing_into(folder: str | Path, wait: float) -> Iterator[None]:
    """Lock a folder against other writers, from before it is opened until its last save.

    Raises:
        UsageError: its name is empty, or that of a file.
        FolderBusyError: another process writes into it, and still does after so many seconds.
        StorageError: it cannot be written.
    """
    with locked(folder_named(folder), wait, screen.complain):
        yield


@contextmanager
def open_to_edit(
    model: str, out: str | None, choices: Choices, dtype: str, device_map: str | None, wait: float
) -> Iterator[tuple[EditModel, Path]]:
    """Open the model to edit and the folder to save it in: a new one, or one to resume.

    No other process can write into the folder meanwhile.

    Raises:
        UsageError: there is no folder to save in, or its edits have another method or setting.
        FolderBusyError: another process writes into it, and still does after so many seconds.
    """
    from errata.saving import is_artifact

    if out is None and not is_artifact(model):
        what = "on the hub" if edits_of(model) is not None else "a base model"
        raise UsageError(f"{model} is {what}: say with --out DIR where the edits are to be saved.")
    goal = folder_named(model if out is None else out)
    if (goal / "config.json").exists():
        raise UsageError(f"{goal} holds a base model; give another --out.")
    with writing_into(goal, wait):
        yield _opened(model, goal, choices, dtype, device_map), goal


def _opened(
    model: str, goal: Path, choices: Choices, dtype: str, device_map: str | None
) -> EditModel:
    import errata
    from errata.saving import is_artifact, read_artifact

    begun = is_artifact(goal)
    if edits_of(model) is not None:
        if begun and not read_artifact(goal).extends(read_edits(model)):
            raise UsageError(f"{goal} already holds other edits than {model}; give another --out.")
        edited = open_artifact(goal if begun else model, dtype, device_map)
    else:
        base, tokenizer = load_base(model, dtype, device_map)
        if not begun:
            return errata.get_edit_model(base, choices.config(base.config), tokenizer)
        edited = errata.EditModel.from_pretrained(base, goal, tokenizer)
    choices.check(edited, goal)
    return edited
