"""Training that survives a kill: each stage keeps its state in one file, written whole.

What a step learns from depends on its number alone, so a run that was stopped goes on as if it had
not been.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from world import SEED

SAVE_SECONDS = 90


class Stage:
    """A model, and how it is trained.

    Attributes:
        name: of the stage and its file.
        model: what is trained.
        steps, batch, rate: how long, on how many at a time, and how fast at most.
        averaged: whether the weights that count are a running mean.
    """

    name: str
    model: nn.Module
    steps: int
    batch: int
    rate: float
    averaged = False

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(SEED)
        self.file = folder / f"{self.name}.pt"
        self.model = self.make()
        self.mean = deepcopy(self.model).requires_grad_(False)

    def make(self) -> nn.Module:
        """Return the model, untrained."""
        raise NotImplementedError

    def loss(self, rng: random.Random, noise: torch.Generator) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Get ready to train."""

    def run(self, seconds: float = math.inf) -> nn.Module:
        """Train to the last step, or for so many seconds; return the model, to be used."""
        optimizer = torch.optim.AdamW(self.parameters(), self.rate, weight_decay=0.01)
        step = 0
        if self.file.exists():
            state = torch.load(self.file)
            self.model.load_state_dict(state["model"])
            self.mean.load_state_dict(state["mean"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
        if step < self.steps:
            self.prepare()
            self.model.train()
        began = saved = time.time()
        total, last = 0.0, step
        while step < self.steps and time.time() - began < seconds:
            share = min(1.0, (step + 1) / 60) * (0.02 + 0.98 * self._cosine(step))
            for group in optimizer.param_groups:
                group["lr"] = self.rate * share
            rng = random.Random(f"{self.name} {SEED} {step}")
            loss = self.loss(rng, torch.Generator().manual_seed(rng.getrandbits(40)))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            step += 1
            self._average(step)
            total += loss.item()
            if step % 50 == 0 or step == self.steps:
                told = f"{self.name} step {step}, {time.time() - began:.0f} s"
                print(f"{told}: loss {total / (step - last):.4f}", flush=True)
                total, last = 0.0, step
            if time.time() - saved > SAVE_SECONDS:
                self.save(step, optimizer)
                saved = time.time()
        self.save(step, optimizer)
        return self.best()

    def best(self) -> nn.Module:
        """Return the model to use."""
        return (self.mean if self.averaged else self.model).eval().requires_grad_(False)

    def parameters(self) -> Iterable[Tensor]:
        """Return what is trained."""
        return [each for each in self.model.parameters() if each.requires_grad]

    def save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Write the stage's file."""
        state: dict[str, Any] = {"step": step, "optimizer": optimizer.state_dict()}
        state |= {"model": self.model.state_dict(), "mean": self.mean.state_dict()}
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.file)

    def _cosine(self, step: int) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * step / self.steps)

    def _average(self, step: int) -> None:
        keep = min(0.995, (step + 1) / (step + 20))
        if self.averaged:
            for mean, now in zip(self.mean.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(now.detach(), 1 - keep)
