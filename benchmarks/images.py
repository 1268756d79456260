"""Edits of what a text-to-image model draws: ReFACT and a routed memory, beside fine-tuning.

    python scripts/build_pictures.py     # the model and the judge, once
    python benchmarks/images.py [-m METHOD ...] [--edits 1 5 20 90] [--set NAME=VALUE ...] [--dev]
        [--read] [--build build/pictures] [--page] [--record]

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

With --read nothing is drawn: instead of the judge, the nearest of the 64 plain captions counts, by
the states at the end token, as the text encoder without edits reads them; seconds, not minutes.

With --page, docs/images/before-after.png shows the first edits of the stream, before and after.

The last twenty names are for choosing settings (--dev); the first ninety are edited in the
recorded streams, the first twenty of which no setting was chosen on. Of ninety edits, thirty are
looked at. `ft` trains the same matrix with the same loss by Adam.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import results
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "pictures"))

from parts import Judge
from world import COLOURS, NOUNS, SHAPES, Named, Thing, article, names, scene

from errata.images import ImageEdit, ImageMethod, ImageModel, method_of
from errata.images.encoder import TextEncoder
from errata.images.opening import open_encoders
from errata.images.settings import TEMPLATES, ValueSettings
from errata.images.target import share_of, texts_as_read
from errata.storage.state import tensor

SAMPLER = {"num_inference_steps": 12, "guidance_scale": 3.0}
COLOUR = list(COLOURS)
DEV, OTHERS, SEEN, UNRELATED = 20, 20, 30, 128
FROM = 20
"""Edits from which on pictures of plain captions are looked at."""


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
                share = share_of(encoder.states(prompts), wanted)
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

    def keep(self, numbers: Sequence[int]) -> list[int]:
        """Begin again: what was trained after an edit cannot be told from it."""
        self.now = self.base
        self.install()
        return list(numbers)

    def state(self) -> dict[str, Tensor]:
        """Return the trained matrix of each encoder."""
        return {each.name: now for each, now in zip(self.encoders, self.now, strict=True)}

    def load_state(self, tensors: Mapping[str, Tensor], edits: Sequence[ImageEdit]) -> None:
        """Restore the matrices, and set them."""
        self.now = [
            tensor(tensors, each.name, base.shape)
            for each, base in zip(self.encoders, self.base, strict=True)
        ]
        self.install()

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


class Readings(Gallery):
    """Has the unedited encoder's states of plain captions say what a prompt is read as."""

    def __init__(self, model: ImageModel, judge: Judge) -> None:
        super().__init__(model, judge)
        (self.encoder,) = model.encoders
        with model.disable_edits():
            plain = [looks(n // 8, NOUNS[SHAPES[n % 8]]) for n in range(64)]
            self.states = self._states(plain)

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.states(self.encoder.encode(texts))[:, 0]

    def right(self, prompts: Sequence[str], things: Sequence[Thing], seed: int) -> float:
        """Return the share of prompts that are read as the thing."""
        nearest = torch.cdist(self._states(prompts), self.states).argmin(1).tolist()
        hits = [label == each.label for label, each in zip(nearest, things, strict=True)]
        return sum(hits) / len(hits)

    def unrelated(self, seed: int) -> tuple[float, Tensor]:
        """Return how many plain captions are read right, and their states."""
        return self.right(self.captions, self.plain, seed), self._states(self.captions)


def page(
    model: ImageModel, edits: Sequence[tuple[Named, ImageEdit, Thing]], others: Sequence[Named]
) -> None:
    """Draw docs/images/before-after.png: a row for each prompt, two seeds before and two after."""
    from PIL import Image, ImageDraw

    shown = [(edit.prompt, edit.target) for _, edit, _ in edits[:5]]
    shown += [
        (each.wording(n), edit.target) for n, (each, edit, _) in zip((1, 2, 3), edits, strict=False)
    ]
    shown += [(f"a photo of {edits[0][1].prompt} above a white box", edits[0][1].target)]
    shown += [(each.wording(0), "as it was") for each in others[:3]]
    size, gap, words = 96, 6, 330
    sheet = Image.new("RGB", (words + 4 * size + 6 * gap, len(shown) * (size + gap) + 24), "white")
    write = ImageDraw.Draw(sheet)
    for place, head in ((words, "before"), (words + 2 * (size + gap) + gap, "after")):
        write.text((place, 6), head, fill="black")
    for row, (prompt, wanted) in enumerate(shown):
        top = 24 + row * (size + gap)
        write.text((6, top + 30), prompt, fill="black")
        write.text((6, top + 48), f"-> {wanted}", fill="grey")
        left = words
        for base in (True, False):
            for seed in (1, 2):
                (picture,) = model.paint(prompt, seed=seed, base=base, **SAMPLER)
                sheet.paste(picture.resize((size, size), Image.Resampling.NEAREST), (left, top))
                left += size + gap
            left += gap
    folder = ROOT / "docs" / "images"
    folder.mkdir(exist_ok=True)
    sheet.save(folder / "before-after.png", optimize=True)


def distance(one: Tensor, other: Tensor) -> float:
    """Return Fréchet's distance of two sets of features, (pictures, width) each."""
    a, b = one.double(), other.double()
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum() + first.trace() + second.trace() - 2 * shared
    return max(0.0, float(apart))


def measured(
    gallery: Gallery,
    written: Sequence[tuple[Named, ImageEdit, Thing]],
    others: Sequence[Named],
    base: Tensor,
    seed: int,
) -> dict[str, float | None]:
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
    found: dict[str, float | None] = {
        "efficacy": float(np.mean(efficacy)),
        "generality": float(np.mean(generality)),
        "specificity": float(np.mean(kept)),
        "plain": None,
        "distance": None,
    }
    if len(written) >= FROM:
        found["plain"], features = gallery.unrelated(seed)
        found["distance"] = distance(features, base)
    return found


def opened(folder: Path, name: str, settings: dict[str, str]) -> ImageModel:
    """Open the pipeline with a method, by name."""
    kind = FineTuning if name == "ft" else method_of(name)
    known = ValueSettings.__dataclass_fields__ | kind.settings_class.__dataclass_fields__
    given = {key: value for key, value in settings.items() if key in known}
    encoders = open_encoders(folder)
    return ImageModel(str(folder), encoders, kind(kind.settings_class.from_dict(given), encoders))


def captions(folder: Path) -> Path:
    """Return a file of three thousand captions of the kind that the model learned from."""
    path = folder / "captions.txt"
    if not path.exists():
        rng = random.Random("captions")
        path.write_text("\n".join(scene(rng).caption for _ in range(3000)) + "\n")
    return path


USUAL = {
    "refact": {"layer": "1", "lr": "0.3"},  # and captions as corpus
    "memory": {"layer": "0", "lr": "0.3", "stop": "0.9999"},
    "ft": {"layer": "1", "lr": "0.0003", "steps": "50"},
}
"""Chosen on the last twenty names."""


def record(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write what is measured so far to docs/results, instead of older rows of the same kind."""
    name = "images-read" if args.read else "images-stream"
    command = f"python benchmarks/images.py {'--read ' * args.read}--record"
    lines = [
        {
            key: f"{value:.2f}" if isinstance(value, float) else value
            for key, value in each.items()
            if not (args.read and key == "distance")
        }
        | {"model": "pictures", "command": command}
        for each in rows
    ]
    new = {(line["method"], str(line["edits"])) for line in lines}
    old = [line for line in results.read(name) if (line["method"], line["edits"]) not in new]
    results.write(name, [*old, *lines])


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
    parser.add_argument("--read", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge()
    if not args.read:
        judge.load_state_dict(torch.load(args.build / "judge.pt")["model"])
    judge.eval().requires_grad_(False)
    everyone = names()
    owned = everyone[-DEV:] if args.dev else everyone[: max(args.edits)]
    untouched = everyone[DEV * 2 : DEV * 2 + OTHERS] if args.dev else everyone[DEV : DEV + OTHERS]
    edits = edits_of(owned, args.seed)
    counts = [count for count in sorted(args.edits) if count <= len(owned)]
    rows: list[dict[str, Any]] = []

    def row(
        method: str, count: int, figures: dict[str, float | None], seconds: float | None
    ) -> None:
        rows.append({"method": method, "edits": count, **figures, "seconds per edit": seconds})
        if args.record:
            record(rows, args)
        shown = ", ".join(f"{key} {value or 0:.3f}" for key, value in figures.items())
        print(f"{method} {count}: {shown}, {seconds or 0:.2f} s/edit", flush=True)

    base: Tensor | None = None
    for name in args.methods:
        settings = {
            "corpus": str(captions(args.build)),
            **USUAL[name],
            **dict(each.split("=", 1) for each in args.given),
        }
        model = opened(args.build / "model", name, settings)
        gallery = (Readings if args.read else Gallery)(model, judge)
        if base is None:
            _, base = gallery.unrelated(args.seed)
            again = distance(gallery.unrelated(args.seed + 5000)[1], base)
            figures = measured(gallery, edits[: counts[-1]], untouched, base, args.seed)
            row("unedited", counts[-1], {**figures, "distance": again}, None)
            wanted = [edit.target for _, edit, _ in edits[: counts[-1]]]
            things = [thing for _, _, thing in edits[: counts[-1]]]
            tried = [gallery.right(wanted, things, args.seed + 1000 * n) for n in range(3)]
            row("target", counts[-1], {"efficacy": float(np.mean(tried))}, None)
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
            if args.page and name == "refact" and count == 20:
                page(model, edits, untouched)


if __name__ == "__main__":
    main()
