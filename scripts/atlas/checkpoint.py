"""A training run that survives a kill: model, optimizer and counts in one atomic file."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
SEED = 7
COUNTS = ("loss", "step", "tokens", "seconds")
SAVE_SECONDS = 180


class Run:
    """What the stages of building atlas have in common.

    Attributes:
        model, optimizer: what is trained.
        loss: what each unit still lacks.
        share: how often each unit is drawn.
        steps: of the whole run.
        step, tokens, seconds: done so far.
        checkpoint: the file.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    loss: list[float]
    share: list[float]
    steps: int
    step: int
    tokens: int
    seconds: float
    checkpoint: Path

    def draw(self, rng: random.Random) -> Iterable[Any]:
        """What the next steps learn from."""
        raise NotImplementedError

    def learn(self, items: Any) -> None:
        """Take one step."""
        raise NotImplementedError

    def progress(self) -> str:
        """How well it goes, since the last call."""
        raise NotImplementedError

    def begin(self) -> None:
        """Set the counts to zero, or to those of the checkpoint, where there is one."""
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name in COUNTS:
                setattr(self, name, state[name])
            print(f"{self.checkpoint.stem} goes on from step {self.step}", flush=True)

    def run(self) -> None:
        """Train to the last step."""
        self.model.train()
        began, saved = time.time() - self.seconds, time.time()
        while self.step < self.steps:
            for items in self.draw(random.Random(f"{SEED} {self.step}")):
                self.learn(items)
                self.seconds = time.time() - began
                if self.step % 100 == 0:
                    print(
                        f"{self.checkpoint.stem} step {self.step}, {self.seconds:.0f} s: "
                        f"{self.progress()}",
                        flush=True,
                    )
                if time.time() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.time()
                if self.step >= self.steps:
                    break
        self.save()

    def chosen(self, rng: random.Random, count: int) -> list[int]:
        """Numbers of units, in proportion to what they still lack."""
        weights = [
            share * (0.08 + min(loss, 1.5))
            for share, loss in zip(self.share, self.loss, strict=True)
        ]
        return rng.choices(range(len(weights)), weights, k=count)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        part = self.checkpoint.with_suffix(".part")
        torch.save(state | {name: getattr(self, name) for name in COUNTS}, part)
        part.replace(self.checkpoint)


def batches(
    items: Iterable[Item], length: Callable[[Item], int], tokens: int, rng: random.Random
) -> list[list[Item]]:
    """Items, ordered by length, in batches of about `tokens`; the batches are in random order."""
    out: list[list[Item]] = [[]]
    for item in items:
        if out[-1] and (len(out[-1]) + 1) * length(item) > tokens:
            out.append([])
        out[-1].append(item)
    rng.shuffle(out)
    return out
