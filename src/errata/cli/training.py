"""A method's training onto the disk, so many steps at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from errata.cli import screen

if TYPE_CHECKING:
    from errata import EditModel, Example


def train(model: EditModel, examples: Sequence[Example], folder: Path, save_every: int) -> int:
    """Train what is left to be trained; the folder is saved after every `save_every` steps and at
    the end.

    Returns:
        How many steps were made.

    Raises:
        typer.Exit: with 130, after Ctrl-C. What was saved stays.
    """
    left, made, saved = model.method.steps_left, 0, 0

    def save() -> None:
        nonlocal saved
        model.save_pretrained(folder)
        saved = made

    try:
        with screen.bar("training", left) as progress:

            def step(count: int) -> None:
                nonlocal made
                made += count
                progress(made, left)
                if made - saved >= save_every:
                    save()

            model.prepare(examples, step)
            if made > saved or not made:
                save()
    except KeyboardInterrupt:
        kept = (
            f"{saved} of {left} steps are saved in {folder}" if saved else "no step was saved yet"
        )
        screen.complain(f"stopped; {kept}. The same command goes on from there.")
        raise typer.Exit(130) from None
    return made
