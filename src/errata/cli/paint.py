"""`errata paint PIPELINE "the ball of Kelor" --out kelor.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli import screen


def paint(
    model: Annotated[
        str, typer.Argument(help="A folder of a diffusers pipeline, or of edits of one.")
    ],
    prompts: Annotated[list[str], typer.Argument(help="What to draw.")],
    out: Annotated[
        Path, typer.Option(help="A PNG file; of several prompts, the start of their names.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Of the noise that a picture starts from.")] = 0,
    base: Annotated[bool, typer.Option("--base", help="Draw without the edits.")] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the sampler; else the pipeline's own number.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Of the prompt; else the pipeline's own.")
    ] = None,
) -> None:
    """Draw pictures with a text-to-image pipeline, with or without the edits."""
    from errata.cli.opening import loading
    from errata.errors import StorageError, UsageError
    from errata.images import ImageModel, holds_images, is_pipeline

    if out.suffix.lower() != ".png":
        raise UsageError(f"--out is {out}; pictures are PNG files, name one that ends in .png.")
    if not (is_pipeline(model) or holds_images(model)):
        raise UsageError(
            f"{model} is neither a folder of a diffusers pipeline nor of edits of one; give either."
        )
    with loading(model):
        opened = ImageModel.load(model) if holds_images(model) else ImageModel.open(model)
        _ = opened.pipeline  # loaded here, so that what is wrong with it is told first
    options = {"num_inference_steps": steps, "guidance_scale": guidance}
    with screen.busy("drawing"):
        pictures = opened.paint(
            prompts,
            seed,
            base,
            **{name: each for name, each in options.items() if each is not None},
        )
    for number, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True), 1):
        path = out if len(prompts) == 1 else out.with_stem(f"{out.stem}-{number}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror}).") from error
        screen.say(f"{path}: {prompt}")
