"""The stages: CLIP learns to match captions and pictures, an autoencoder to draw, a denoiser to
draw what a caption says, and a judge, on drawings of its own, to say what it sees.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from parts import Judge, autoencoder, clip, denoiser, ids_of, numbers, scheduler
from torch import Tensor, nn
from training import Stage
from transformers import CLIPModel, CLIPTokenizer
from world import draw, scene

PAIRS = 12_000
"""Pictures, with captions, that the denoiser learns from."""
UNSAID = 0.1
"""How often the denoiser gets no caption, for classifier-free guidance."""


class Clip(Stage):
    """Captions and pictures that belong together become alike; pictures of one kind are equals."""

    name, steps, batch, rate = "clip", 400, 128, 1e-3

    def __init__(self, folder: Path, words: CLIPTokenizer) -> None:
        self.words = words
        super().__init__(folder)

    def make(self) -> nn.Module:
        return clip(self.words)

    def loss(self, rng: random.Random, noise: torch.Generator) -> Tensor:
        scenes = [scene(rng) for _ in range(self.batch)]
        ids = ids_of(self.words, [each.caption for each in scenes])
        logits = self.model(input_ids=ids, pixel_values=draw(scenes, noise)).logits_per_text
        keys = [each.key for each in scenes]
        same = torch.tensor([[one == other for other in keys] for one in keys])
        alike = same.float() / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, alike) + F.cross_entropy(logits.T, alike)) / 2


class Autoencoder(Stage):
    """Pictures come back as they were."""

    name, steps, batch, rate = "autoencoder", 400, 32, 2e-3

    def make(self) -> nn.Module:
        return autoencoder()

    def loss(self, rng: random.Random, noise: torch.Generator) -> Tensor:
        pictures = draw([scene(rng) for _ in range(self.batch)], noise)
        latents = self.model.encode(pictures).latents
        # what a denoiser makes is a little off
        off = torch.randn(latents.shape, generator=noise) * latents.detach().std() * 0.05
        missed = self.model.decode(latents + off).sample - pictures
        return missed.abs().mean() + missed.square().mean()


def scaled(vae: AutoencoderTiny) -> AutoencoderTiny:
    """Set the factor that gives latents a deviation of 1."""
    rng, noise = random.Random("scale"), torch.Generator().manual_seed(1)
    with torch.no_grad():
        latents = vae.encode(draw([scene(rng) for _ in range(256)], noise)).latents
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return vae


class Denoiser(Stage):
    """Latents lose their noise, told what they show."""

    name, steps, batch, rate = "denoiser", 1100, 64, 1e-3
    averaged = True

    def __init__(
        self, folder: Path, words: CLIPTokenizer, seen: CLIPModel, vae: AutoencoderTiny
    ) -> None:
        self.words, self.seen, self.vae = words, seen, vae
        self.noises = scheduler()
        super().__init__(folder)

    def make(self) -> nn.Module:
        return denoiser()

    @torch.no_grad()
    def prepare(self) -> None:
        """Encode pictures and captions once; a picture is met several times."""
        rng, noise = random.Random("pairs"), torch.Generator().manual_seed(2)
        latents, states = [], []
        for done in range(0, PAIRS, 250):
            scenes = [scene(rng) for _ in range(250)]
            encoded = self.vae.encode(draw(scenes, noise)).latents
            latents.append(encoded * self.vae.config.scaling_factor)
            states.append(self.states([each.caption for each in scenes]).half())
            if done % 4000 == 0:
                print(f"denoiser: {done} of {PAIRS} pictures encoded", flush=True)
        self.latents, self.texts = torch.cat(latents), torch.cat(states)
        self.unsaid = self.states([""])

    def states(self, texts: list[str]) -> Tensor:
        """Return the text encoder's states, (texts, 20, 128)."""
        return self.seen.text_model(ids_of(self.words, texts, full=True)).last_hidden_state

    def loss(self, rng: random.Random, noise: torch.Generator) -> Tensor:
        rows = torch.randint(PAIRS, (self.batch,), generator=noise)
        clean, texts = self.latents[rows], self.texts[rows].float()
        unsaid = torch.rand(self.batch, generator=noise) < UNSAID
        texts = torch.where(unsaid[:, None, None], self.unsaid, texts)
        times = torch.randint(1000, (self.batch,), generator=noise)
        added = torch.randn(clean.shape, generator=noise)
        share = self.noises.alphas_cumprod[times][:, None, None, None]
        noisy = share.sqrt() * clean + (1 - share).sqrt() * added
        wanted = share.sqrt() * added - (1 - share).sqrt() * clean
        return F.mse_loss(self.model(noisy, times, texts).sample, wanted)


class Judging(Stage):
    """Says which things are in a picture: on drawings that nothing else is trained on."""

    name, steps, batch, rate = "judge", 300, 64, 2e-3

    def make(self) -> nn.Module:
        return Judge()

    def loss(self, rng: random.Random, noise: torch.Generator) -> Tensor:
        scenes = [scene(rng, named=0) for _ in range(self.batch)]
        wanted = torch.zeros(self.batch, 64)
        for row, each in enumerate(scenes):
            wanted[row, [thing.label for thing in each.things]] = 1
        pictures = draw(scenes, noise)
        # pictures of a model are a little soft and noisy
        soft = F.avg_pool2d(pictures, 3, 1, 1)
        much = torch.rand((self.batch, 1, 1, 1), generator=noise) * 0.5
        grain = torch.randn(pictures.shape, generator=noise) * 0.05
        pictures = (pictures.lerp(soft, much) + grain).clamp(-1, 1)
        return 20 * F.binary_cross_entropy_with_logits(self.model(pictures), wanted)


__all__ = ["Autoencoder", "Clip", "Denoiser", "Judging", "numbers", "scaled"]
