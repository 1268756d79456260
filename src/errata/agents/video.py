"""`film`: a small GIF of an episode, with the state that was read and the action under it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errata.agents.game import EXTRA, Cell, Game
from errata.agents.policies import Policy
from errata.agents.rollout import play_episodes
from errata.errors import StorageError, UsageError
from errata.storage.files import write_whole

WIDTH, CAPTION, MARGIN = 240, 16, 4
FRAMES, LEAST_FRAMES = 90, 12
COLOURS = 32
MILLISECONDS, LAST = 80, 1200
MOST_BYTES = 150_000


def film(
    game: Game, policy: Policy, seed: int, path: Path, most_steps: int | None = None
) -> tuple[float, int]:
    """Play one episode and write it as a GIF of at most `MOST_BYTES` bytes; see `most_steps`.

    A long episode is cut to evenly spaced steps.

    Returns:
        The return of the episode, and the number of frames.

    Raises:
        UsageError: Pillow, or what draws the game, is not installed; or it draws nothing.
        StorageError: the file cannot be written.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(f"a GIF needs Pillow: `pip install 'errata[{EXTRA}]'`.") from error
    drawn: list[Any] = []
    step = 0
    stride = 1

    def see(environment: Any, cell: Cell, action: int | None) -> None:
        nonlocal step, stride
        if step % stride == 0 or action is None:
            text = game.state(cell) + ("" if action is None else f" > {game.actions[action]}")
            drawn.append(_frame(Image, environment.render(), text))
            if len(drawn) >= 2 * FRAMES:
                drawn[:] = drawn[::2]
                stride *= 2
        step += 1

    played = play_episodes(game, policy, [seed], most_steps, see)
    content, frames = _encoded(drawn)
    try:
        write_whole(path, content)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}).") from error
    return played.mean, frames


def _frame(image: Any, picture: Any, text: str) -> Any:
    """A picture (height, width, 3) of bytes, made smaller, with a line of text under it."""
    from PIL import ImageDraw

    if picture is None:
        raise UsageError(f"this game draws no picture; `pip install 'errata[{EXTRA}]'`.")
    small = image.fromarray(picture)
    height = round(small.height * WIDTH / small.width)
    made = image.new("RGB", (WIDTH, height + CAPTION), "white")
    made.paste(small.resize((WIDTH, height)))
    ImageDraw.Draw(made).text((MARGIN, height + 2), text, fill="black")
    return made


def _encoded(drawn: Sequence[Any]) -> tuple[bytes, int]:
    """The GIF with as many of the frames as its size allows."""
    count = min(FRAMES, len(drawn))
    while True:
        places = [round(at * (len(drawn) - 1) / max(1, count - 1)) for at in range(count)]
        palette = drawn[places[-1]].quantize(COLOURS)
        frames = [drawn[at].quantize(palette=palette, dither=0) for at in dict.fromkeys(places)]
        times = [MILLISECONDS] * (len(frames) - 1) + [LAST]
        file = io.BytesIO()
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
        if file.tell() <= MOST_BYTES or count <= LEAST_FRAMES:
            return file.getvalue(), len(frames)
        count = max(LEAST_FRAMES, count * 3 // 4)
