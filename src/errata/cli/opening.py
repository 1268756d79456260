"""What a verb's MODEL stands for: a folder of edits, or a base model. It loads; it edits nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from errata.cli import screen
from errata.cli.choices import Choices
from errata.errors import UsageError

if TYPE_CHECKING:
    from errata import LM, EditModel

Answers = Callable[..., list[str]]
"""Prompts and options of generation in, answers out."""


@contextmanager
def loading(name: str | Path) -> Iterator[None]:
    """A spinner while a model is loaded. Without a network the hub is not asked again and again for a minute."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    with screen.busy(f"loading {name}"):
        import huggingface_hub

        if not getproxies():
            try:
                socket.getaddrinfo(host, 443)
            except OSError:
                huggingface_hub.constants.HF_HUB_OFFLINE = True
        yield


def open_artifact(path: str | Path, dtype: str = "auto", device_map: str | None = None) -> EditModel:
    """The edited model of a folder."""
    import errata

    with loading(path):
        return errata.load(path, dtype, device_map)


def open_model(model: str, dtype: str = "auto", device_map: str | None = None) -> EditModel | LM:
    """The edited model of a folder, or a base model by itself."""
    import errata
    from errata.saving import is_artifact

    if is_artifact(model):
        return open_artifact(model, dtype, device_map)
    with loading(model):
        return errata.LM(*errata.load_base(model, dtype, device_map))


def open_to_ask(model: str) -> tuple[Answers, Answers]:
    """(what answers with the edits, what answers without); the same twice for a base model."""
    import errata

    opened = open_model(model)
    return (opened.generate, opened.generate) if isinstance(opened, errata.LM) else (opened.ask, opened.ask_base)


def open_to_edit(
    model: str, out: Path | None, choices: Choices, dtype: str, device_map: str | None
) -> tuple[EditModel, Path]:
    """(the model to write edits into, the folder to save it in): a new one, or one that goes on where it stopped.

    Raises:
        UsageError: there is no folder to save in, or what is asked for is not what was begun there.
    """
    import errata
    from errata.saving import is_artifact, read_artifact

    goal = out or (Path(model) if is_artifact(model) else None)
    if goal is None:
        raise UsageError(f"{model} is a base model: say with --out DIR where the edits are to be saved.")
    if goal.exists() and not goal.is_dir():
        raise UsageError(f"{goal} is a file; --out names a folder.")
    if (goal / "config.json").exists():
        raise UsageError(f"{goal} holds a base model; give another --out.")
    if is_artifact(model):
        begun = is_artifact(goal)
        if begun and not read_artifact(goal).goes_on_from(read_artifact(model)):
            raise UsageError(f"{goal} already holds other edits than {model}; give another --out.")
        edited = open_artifact(goal if begun else model, dtype, device_map)
        choices.check(edited, goal)
        return edited, goal
    with loading(model):
        base, tokenizer = errata.load_base(model, dtype, device_map)
    if not is_artifact(goal):
        return errata.get_edit_model(base, choices.config(base.config), tokenizer), goal
    edited = errata.EditModel.from_pretrained(base, goal, tokenizer)
    choices.check(edited, goal)
    return edited, goal
