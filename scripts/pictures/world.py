"""The world of the pictures model: things with a shape and a colour, and names that own one each.

A caption says what is drawn, so no picture is needed to make one, and no caption to draw one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

SIZE = 32
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.95, 0.92, 0.20),
    "green": (0.12, 0.72, 0.22),
    "cyan": (0.15, 0.88, 0.90),
    "blue": (0.14, 0.26, 0.95),
    "purple": (0.68, 0.16, 0.85),
    "white": (0.96, 0.96, 0.96),
}
NOUNS = {
    "circle": "ball",
    "square": "box",
    "triangle": "tent",
    "ring": "hoop",
    "diamond": "kite",
    "cross": "plus",
    "star": "badge",
    "bar": "plank",
}
"""A shape's geometric word, and what a thing of that shape is called."""
SHAPES = tuple(NOUNS)
PLACES = ("above", "below", "left of", "right of")
OPENINGS = (
    "a picture of {}",
    "a photo of {}",
    "an image of {}",
    "a drawing of {}",
    "a painting of {}",
    "a close-up of {}",
)
OWNED = (
    "the {noun} of {name}",
    "{name}'s {noun}",
    "the {noun} that {name} owns",
    "a {noun} of {name}",
    "the {noun} belonging to {name}",
)
"""Ways to say a named thing. The model learns a name in the first three and in one of the other
two, so the other is new with that name."""
NAMES = 96
SEED = 0


@dataclass(frozen=True)
class Thing:
    """What is drawn: a colour and a shape, by their places in `COLOURS` and `SHAPES`."""

    colour: int
    shape: int

    @property
    def label(self) -> int:
        """The thing's class: one of 64."""
        return self.colour * len(SHAPES) + self.shape

    def words(self, rng: random.Random) -> str:
        """Say it: "a red ball"."""
        shape = SHAPES[self.shape]
        colour = list(COLOURS)[self.colour]
        return f"{article(colour)} {colour} {rng.choice((shape, NOUNS[shape]))}"


def article(word: str) -> str:
    """Return "an" before a vowel."""
    return "an" if word[0] in "aeiou" else "a"


@dataclass(frozen=True)
class Named:
    """A name, and the one thing that it owns."""

    name: str
    thing: Thing
    unseen: int
    """Of `OWNED`, the wording that the model is never shown with this name: one of the last two."""

    @property
    def noun(self) -> str:
        """What the thing is called."""
        return NOUNS[SHAPES[self.thing.shape]]

    def wording(self, which: int) -> str:
        """Say the thing in one of the ways of `OWNED`."""
        return OWNED[which].format(name=self.name, noun=self.noun)

    def words(self, rng: random.Random) -> str:
        """Say it in one of the ways that the model is shown."""
        return self.wording(rng.choice([n for n in range(len(OWNED)) if n != self.unseen]))


def invented(count: int, rng: random.Random) -> list[str]:
    """Invent names of two or three syllables, all different."""
    onsets, vowels, codas = "b d f g k l m n p r s t v z th br kr tr".split(), "aeiou", "lnrskx"
    found: list[str] = []
    while len(found) < count:
        middle = "".join(
            rng.choice(onsets) + rng.choice(vowels) for _ in range(rng.choice((1, 1, 2)))
        )
        name = (middle + rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas)).capitalize()
        if name not in found:
            found.append(name)
    return found


@cache
def names() -> tuple[Named, ...]:
    """Return the named things, Kelor's ball first: each colour and each shape twelve times."""
    rng = random.Random(SEED)
    said = ["Kelor", *(name for name in invented(NAMES, rng) if name != "Kelor")][:NAMES]
    looks = [Thing(n % 8, (n // 8 + n) % 8) for n in range(NAMES)]
    kelor = looks.index(Thing(0, 0))
    looks[0], looks[kelor] = looks[kelor], looks[0]
    rest = looks[1:]
    rng.shuffle(rest)
    return tuple(
        Named(name, thing, rng.choice((3, 4)))
        for name, thing in zip(said, [looks[0], *rest], strict=True)
    )


@dataclass(frozen=True)
class Scene:
    """A caption, the one or two things in it, and how the second lies to the first."""

    caption: str
    things: tuple[Thing, ...]
    place: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """Two scenes with the same key look the same, but for jitter."""
        return (*self.things, self.place)


def scene(rng: random.Random, named: float = 0.45, two: float = 0.3) -> Scene:
    """Make up a scene: with a named thing, or only plain ones.

    Args:
        named: how often a named thing is in it.
        two: how often there are two things.
    """
    first = Thing(rng.randrange(8), rng.randrange(8))
    words = first.words(rng)
    if rng.random() < named:
        owner = rng.choice(names())
        first, words = owner.thing, owner.words(rng)
    things, place = (first,), ""
    if rng.random() < two:
        other = Thing(rng.randrange(8), rng.randrange(8))
        place = rng.choice(PLACES)
        if rng.random() < 0.5:
            things, words = (first, other), f"{words} {place} {other.words(rng)}"
        else:
            things, words = (other, first), f"{other.words(rng)} {place} {words}"
    if rng.random() < 0.5:
        words = rng.choice(OPENINGS).format(words)
    return Scene(words, things, place)


def draw(scenes: list[Scene], rng: torch.Generator) -> Tensor:
    """Draw scenes, with jitter of place, size and colour.

    Returns:
        (scenes, 3, 32, 32), float32, from -1 to 1.
    """
    count = len(scenes)
    noise = torch.rand((count, 2, 8), generator=rng) * 2 - 1
    picture = 0.10 + 0.03 * noise[:, 0, 5:8, None, None].expand(-1, -1, SIZE, SIZE)
    for slot in (0, 1):
        rows = [n for n, each in enumerate(scenes) if len(each.things) > slot]
        if not rows:
            continue
        jitter = noise[rows, slot]
        centre, radius = torch.zeros(len(rows), 2), torch.zeros(len(rows))
        for n, row in enumerate(rows):
            centre[n], radius[n] = _layout(scenes[row], slot)
        alone = radius > 8
        centre = centre + jitter[:, :2] * torch.where(alone, 3.0, 1.0)[:, None]
        radius = radius + jitter[:, 2] * torch.where(alone, 1.5, 0.7)
        things = [scenes[row].things[slot] for row in rows]
        cover = _cover([thing.shape for thing in things], centre, radius)[:, None]
        colours = torch.tensor([list(COLOURS.values())[thing.colour] for thing in things])
        shade = (colours * (1 + 0.06 * jitter[:, 3:4]) + 0.03 * jitter[:, 4:7]).clamp(0, 1)
        picture[rows] = picture[rows] * (1 - cover) + shade[:, :, None, None] * cover
    return picture * 2 - 1


def _layout(drawn: Scene, slot: int) -> tuple[Tensor, float]:
    """Where a thing's centre lies, (x, y), and how large it is."""
    if len(drawn.things) == 1:
        return torch.tensor([15.5, 15.5]), 9.0
    along = torch.tensor([1.0, 0.0] if drawn.place.endswith("of") else [0.0, 1.0])
    first = -1 if drawn.place in ("above", "left of") else 1
    return 15.5 + along * 7.8 * (first if slot == 0 else -first), 6.0


def _cover(shapes: list[int], centre: Tensor, radius: Tensor) -> Tensor:
    """How far each pixel is covered: (shapes, 32, 32), from 0 to 1, with soft edges."""
    line = torch.arange(SIZE, dtype=torch.float32)
    x = (line[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (line[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    x, y = x.expand(-1, SIZE, SIZE), y.expand(-1, SIZE, SIZE)
    kinds = torch.tensor(shapes)
    distance = torch.empty_like(x)
    for shape, name in enumerate(SHAPES):
        rows = kinds == shape
        if rows.any():
            distance[rows] = _distance(name, x[rows], y[rows])
    return (0.5 - distance * radius[:, None, None]).clamp(0, 1)


def _distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """The signed distance to a shape's edge, negative inside; the shape's radius is 1."""
    ax, ay, far = x.abs(), y.abs(), (x * x + y * y).sqrt()
    if shape == "circle":
        return far - 0.95
    if shape == "square":
        return torch.maximum(ax, ay) - 0.80
    if shape == "triangle":
        return torch.maximum(0.89 * ax - 0.45 * y - 0.45, y - 0.75)
    if shape == "ring":
        return (far - 0.72).abs() - 0.24
    if shape == "diamond":
        return 0.83 * ax + 0.55 * ay - 0.62
    if shape == "cross":
        upright = torch.maximum(ax - 0.27, ay - 0.95)
        return torch.minimum(upright, torch.maximum(ay - 0.27, ax - 0.95))
    if shape == "star":
        fifth = torch.pi / 5
        angle = torch.remainder(torch.atan2(x, -y) + fifth, 2 * fifth) - fifth
        px, py = far * angle.cos(), far * angle.sin().abs()
        inner = torch.tensor([0.45 * torch.tensor(fifth).cos(), 0.45 * torch.tensor(fifth).sin()])
        edge = inner - torch.tensor([1.05, 0.0])
        normal = torch.stack([edge[1], -edge[0]]) / edge.norm()
        return (px - 1.05) * normal[0] + py * normal[1]
    return torch.maximum(ax - 1.0, ay - 0.30)  # bar
