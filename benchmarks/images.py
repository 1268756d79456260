"""Edits of what a text-to-image model draws: ReFACT and a routed memory, beside fine-tuning.

    python scripts/build_pictures.py     # the model and the judge, once
    python benchmarks/images.py [-m METHOD ...] [--edits 1 5 20 90] [--set NAME=VALUE ...] [--dev]
        [--build build/pictures] [--pages docs/images] [--record]

Edits are written one after another: the thing that each name owns gets another colour, drawn at
random; the negatives are the other six colours. After so many edits the judge, a classifier that
saw neither the names nor the model's pictures, looks at

    efficacy      the edits' own prompts: the new colour, and the shape as it was
    generality    four other wordings of each, one of which the model never saw with that name
    specificity   the things of twenty names that no edit is about: as they were
    plain         captions without a name: colour and shape
    distance      Fréchet's, of the judge's features: pictures of 128 plain captions, against the
                  same captions and noise without edits; `again` is the unedited model against
                  itself with other noise

The last twenty names are for choosing settings (--dev); the first ninety are edited in the
recorded streams, the first twenty of which no setting was chosen on. Of ninety edits, thirty are
looked at. `ft` trains the same matrix with the same loss by Adam.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import results
import torch
from scipy.linalg import sqrtm
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "pictures"))

from parts import Judge
from world import COLOURS, NOUNS, SHAPES, Named, Thing, article, names

from errata.images import ImageEdit, ImageMethod, ImageModel, method_of
from errata.images.encoder import TextEncoder
from errata.images.opening import open_encoders
from errata.images.settings import TEMPLATES, ValueSettings
from errata.images.target import share_of, texts_as_read

SAMPLER = {"num_inference_steps": 12, "guidance_scale": 3.0}
COLOUR = list(COLOURS)
DEV, OTHERS, SEEN, UNRELATED = 20, 20, 30, 128


class FineTuning(ImageMethod):
    """Trains the matrix that ReFACT changes, with ReFACT's loss: the control."""

    name = "ft"
    settings_class: ClassVar[type[ValueSettings]] = ValueSettings

    def __init__(self, settings: ValueSettings, encoders: Sequence[TextEncoder]) -> None:
        super().__init__(settings, encoders)
        pairs = zip(self.encoders, self.layers, strict=True)
        self.weights = [encoder.matrix(layer).weight for encoder, layer in pairs]
        self.base = [weight.detach().clone() for weight in self.weights]
        self.now = [weight.clone() for weight in self.base]

    def write(self, edit: ImageEdit) -> tuple[float, int]:
        """Take Adam's steps on one edit."""
        steps, shares = 0, []
        for encoder, weight in zip(self.encoders, self.weights, strict=True):
            with self.removed():
                wanted = texts_as_read(encoder, (edit.target, edit.prompt, *edit.negatives))
            prompts = encoder.encode([each.format(edit.prompt) for each in TEMPLATES])
            weight.requires_grad_(True)
            adam = torch.optim.Adam([weight], lr=self.settings.lr)
            for _ in range(self.settings.steps):
                share = share_of(encoder.states(prompts)[1], wanted)
                if share.exp().item() > self.settings.stop:
                    break
                adam.zero_grad()
                (-share).backward()
                adam.step()
                steps += 1
            weight.requires_grad_(False)
            shares.append(share.exp().item())
        self.now = [weight.detach().clone() for weight in self.weights]
        return min(shares), steps

    def install(self) -> None:
        """Set the trained weights."""
        self._set(self.now)

    def remove(self) -> None:
        """Set the base's weights."""
        self._set(self.base)

    def _set(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self.weights, values, strict=True):
                weight.copy_(value)


def looks(colour: int, noun: str) -> str:
    """Say a plain thing: "a blue ball"."""
    return f"{article(COLOUR[colour])} {COLOUR[colour]} {noun}"


def edits_of(owned: Sequence[Named], seed: int) -> list[tuple[Named, ImageEdit, Thing]]:
    """Return (whose thing, the edit, what it shall look like) for each name."""
    rng, found = random.Random(seed), []
    for each in owned:
        colour = rng.choice([n for n in range(len(COLOUR)) if n != each.thing.colour])
        negatives = [looks(n, each.noun) for n in range(len(COLOUR)) if n != colour]
        edit = ImageEdit(each.wording(0), each.name, looks(colour, each.noun), tuple(negatives))
        found.append((each, edit, Thing(colour, each.thing.shape)))
    return found


class Gallery:
    """Draws prompts with a model, and has the judge look at them."""

    def __init__(self, model: ImageModel, judge: Judge) -> None:
        self.model, self.judge = model, judge
        rng = random.Random("unrelated")
        self.plain = [Thing(rng.randrange(8), rng.randrange(8)) for _ in range(UNRELATED)]
        self.captions = [
            looks(each.colour, rng.choice((SHAPES[each.shape], NOUNS[SHAPES[each.shape]])))
            for each in self.plain
        ]

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], seed: int) -> Tensor:
        """Return pictures (prompts, 3, 32, 32) from -1 to 1; each prompt has noise of its own."""
        drawn = []
        for start in range(0, len(prompts), 32):
            texts = list(prompts[start : start + 32])
            noise = [torch.Generator().manual_seed(seed + start + n) for n in range(len(texts))]
            drawn.append(
                self.model.pipeline(texts, generator=noise, output_type="pt", **SAMPLER).images
            )
        return torch.cat(drawn) * 2 - 1

    def right(self, prompts: Sequence[str], things: Sequence[Thing], seed: int) -> float:
        """Return the share of prompts whose picture shows the thing."""
        with torch.no_grad():
            labels = self.judge(self.draw(prompts, seed)).argmax(1).tolist()
        hits = [label == each.label for label, each in zip(labels, things, strict=True)]
        return sum(hits) / len(hits)

    def unrelated(self, seed: int) -> tuple[float, Tensor]:
        """Return how many plain captions are drawn right, and the pictures' features."""
        pictures = self.draw(self.captions, seed)
        with torch.no_grad():
            labels = self.judge(pictures).argmax(1).tolist()
            features = self.judge.features(pictures)
        hits = [label == each.label for label, each in zip(labels, self.plain, strict=True)]
        return sum(hits) / len(hits), features


def distance(one: Tensor, other: Tensor) -> float:
    """Return Fréchet's distance of two sets of features, (pictures, width) each."""
    a, b = one.double().numpy(), other.double().numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    apart = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    return apart + float(np.trace(first + second - 2 * np.real(sqrtm(first @ second))))


def measured(
    gallery: Gallery,
    written: Sequence[tuple[Named, ImageEdit, Thing]],
    others: Sequence[Named],
    base: Tensor,
    seed: int,
) -> dict[str, float]:
    """Return the figures of a model as it is."""
    looked = list(written)
    if len(looked) > SEEN:
        looked = random.Random(0).sample(looked, SEEN)
    new = [thing for _, _, thing in looked]
    times = max(1, 8 // len(looked))
    efficacy = [
        gallery.right([edit.prompt for _, edit, _ in looked], new, seed + 1000 * n)
        for n in range(times)
    ]
    generality = [
        gallery.right([each.wording(n) for each, _, _ in looked], new, seed + 100 * n)
        for n in range(1, 5)
    ]
    kept = [
        gallery.right([each.wording(n) for each in others], [each.thing for each in others], seed)
        for n in (0, 1)
    ]
    plain, features = gallery.unrelated(seed)
    return {
        "efficacy": float(np.mean(efficacy)),
        "generality": float(np.mean(generality)),
        "specificity": float(np.mean(kept)),
        "plain": plain,
        "distance": distance(features, base),
    }


def opened(folder: Path, name: str, settings: dict[str, str]) -> ImageModel:
    """Open the pipeline with a method, by name."""
    kind = FineTuning if name == "ft" else method_of(name)
    known = ValueSettings.__dataclass_fields__ | kind.settings_class.__dataclass_fields__
    given = {key: value for key, value in settings.items() if key in known}
    encoders = open_encoders(folder)
    return ImageModel(str(folder), encoders, kind(kind.settings_class.from_dict(given), encoders))


USUAL = {
    "refact": {"layer": "1", "lr": "0.3"},
    "memory": {"layer": "1", "lr": "0.3"},
    "ft": {"layer": "1", "lr": "0.001"},
}
"""Chosen on the last twenty names."""


def main() -> None:
    """Measure, and print or record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("-m", "--methods", nargs="+", default=["refact", "memory", "ft"])
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 5, 20, 90])
    parser.add_argument("--set", dest="given", action="append", default=[])
    parser.add_argument("--dev", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "pictures")
    parser.add_argument("--pages", type=Path)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge()
    judge.load_state_dict(torch.load(args.build / "judge.pt")["model"])
    judge.eval().requires_grad_(False)
    everyone = names()
    owned = everyone[-DEV:] if args.dev else everyone[: max(args.edits)]
    untouched = everyone[DEV * 2 : DEV * 2 + OTHERS] if args.dev else everyone[DEV : DEV + OTHERS]
    edits = edits_of(owned, args.seed)
    counts = [count for count in sorted(args.edits) if count <= len(owned)]
    rows: list[dict[str, Any]] = []

    def row(method: str, count: int, figures: dict[str, float], seconds: float | None) -> None:
        rows.append({"method": method, "edits": count, **figures, "seconds per edit": seconds})
        shown = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        print(f"{method} {count}: {shown}, {seconds or 0:.2f} s/edit", flush=True)

    base: Tensor | None = None
    for name in args.methods:
        settings = {**USUAL[name], **dict(each.split("=", 1) for each in args.given)}
        model = opened(args.build / "model", name, settings)
        gallery = Gallery(model, judge)
        if base is None:
            _, base = gallery.unrelated(args.seed)
            again = distance(gallery.unrelated(args.seed + 5000)[1], base)
            figures = measured(gallery, edits[: counts[-1]], untouched, base, args.seed)
            row("unedited", counts[-1], {**figures, "distance": again}, None)
        seconds, done = 0.0, 0
        for count in counts:
            begun = time.process_time()
            model.edit([edit for _, edit, _ in edits[done:count]])
            seconds, done = seconds + time.process_time() - begun, count
            # of ninety edits, the names that no edit is about are few
            others = [each for each in untouched if each not in owned[:count]]
            others = others or [each for each in everyone if each not in owned[:count]]
            figures = measured(gallery, edits[:count], others, base, args.seed)
            row(name, count, figures, seconds / count)
    if args.record:
        command = "python benchmarks/images.py --record"
        results.write(
            "images-stream",
            [
                {
                    key: f"{value:.2f}" if isinstance(value, float) else value
                    for key, value in each.items()
                }
                | {"model": "pictures", "command": command}
                for each in rows
            ],
        )


if __name__ == "__main__":
    main()
