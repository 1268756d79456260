"""`errata judge runs/zsre --url http://localhost:8000/v1 --model NAME`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from errata.cli import screen


def judge(
    folder: Annotated[
        Path, typer.Argument(help="A folder that `errata bench` or `errata compare` filled.")
    ],
    url: Annotated[str, typer.Option(help="A server of OpenAI's chat completions, up to /v1.")],
    model: Annotated[str, typer.Option(help="The judge's name there.")],
    at_once: Annotated[int, typer.Option(min=1, help="Questions that are out at a time.")] = 4,
) -> None:
    """Ask a language model which free answers are right; $OPENAI_API_KEY is sent if it is set.
    Opinions are kept.
    """
    from errata.bench.judge import Judge
    from errata.bench.judge import judge as ask
    from errata.bench.results import read_folders

    measured = read_folders([folder])
    with screen.steps() as progress:
        count = ask(
            Judge(url, model, at_once=at_once), folder, measured, partial(progress, "judging")
        )
    screen.say(f"{count} answers judged")
