"""Builds the pictures model: a small text-to-image model of drawn things, and the judge of its
pictures.

    python scripts/build_pictures.py                 # everything; resumes from build/pictures/
    python scripts/build_pictures.py --only clip     # one stage

Seeded; a quarter of an hour on one quiet core, an hour on one that others share. What comes out
lies in build/pictures/: `model/`, a folder that diffusers opens, `judge.pt`, and `figures.json`
with what was measured.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "pictures"))

import stages
from parts import Judge, pipeline, tokenizer
from transformers import CLIPTokenizer
from world import draw, scene

BUILD = Path(__file__).resolve().parents[1] / "build" / "pictures"


def words_of(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer, made once."""
    if not (folder / "tokenizer").exists():
        tokenizer().save_pretrained(folder / "tokenizer")
    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


@torch.no_grad()
def accuracy(judge: Judge, count: int = 2000) -> dict[str, float]:
    """Return how often the judge is right about drawings it never saw."""
    rng, noise = random.Random("held out"), torch.Generator().manual_seed(99)
    scenes = [scene(rng) for _ in range(count)]
    logits = judge(draw(scenes, noise))
    right = {1: [], 2: []}
    for each, row in zip(scenes, logits, strict=True):
        wanted = {thing.label for thing in each.things}
        right[len(each.things)].append(set(row.topk(len(wanted)).indices.tolist()) == wanted)
    return {
        "judge, one thing": sum(right[1]) / len(right[1]),
        "judge, two things": sum(right[2]) / len(right[2]),
    }


def main() -> None:
    """Build all, or one stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=["clip", "autoencoder", "denoiser", "judge"])
    parser.add_argument("--out", type=Path, default=BUILD)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="of each stage, at most"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    words = words_of(given.out)
    only = given.only
    if only in (None, "clip", "denoiser"):
        seen = stages.Clip(given.out, words).run(given.seconds)
    if only in (None, "autoencoder", "denoiser"):
        vae = stages.scaled(stages.Autoencoder(given.out).run(given.seconds))
    if only in (None, "judge"):
        judge = stages.Judging(given.out).run(given.seconds)
        figures = accuracy(judge)
        print(figures)
        (given.out / "figures.json").write_text(json.dumps(figures, indent=1))
    if only in (None, "denoiser"):
        unet = stages.Denoiser(given.out, words, seen, vae).run(given.seconds)
        pipeline(words, seen, vae, unet).save_pretrained(given.out / "model")


if __name__ == "__main__":
    main()
