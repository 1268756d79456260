"""A training run that survives a kill: model, optimizer and counts in one file, written whole or
not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

COUNTS = ("loss", "step", "tokens", "seconds")


class Run:
    """What the stages of building atlas have in common.

    Attributes:
        model, optimizer: what is trained.
        loss: what each unit still lacks.
        step, tokens, seconds: done so far.
        checkpoint: the file.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    loss: list[float]
    step: int
    tokens: int
    seconds: float
    checkpoint: Path

    def begin(self) -> None:
        """Counts at zero; then the checkpoint, where there is one."""
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for name in COUNTS:
                setattr(self, name, state[name])
            print(f"{self.checkpoint.stem} goes on from step {self.step}", flush=True)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        part = self.checkpoint.with_suffix(".part")
        torch.save(state | {name: getattr(self, name) for name in COUNTS}, part)
        part.replace(self.checkpoint)
