"""`Descent`: AdamW on some tensors, step after step; cut off, it goes on from its last save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from errata.errors import ArtifactError
from errata.progress import OnProgress

CLIPPED = 1.0
"""The largest norm of a step's gradient."""


def paired(
    count: int, others: int, size: int, epochs: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """Draw what each step takes of two sets, by number: `size` of either.

    The first set makes the epochs; the second, where it is not empty, is gone through as often as
    that takes.
    """
    generator = torch.Generator().manual_seed(seed)
    steps, ahead = list[tuple[list[int], list[int]]](), list[int]()
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, size):
            while others and len(ahead) < size:
                ahead += torch.randperm(others, generator=generator).tolist()
            steps.append((order[start : start + size], ahead[:size]))
            ahead = ahead[size:]
    return steps


@dataclass(frozen=True)
class Descent:
    """A run of gradient steps.

    Attributes:
        parameters: leaf tensors, by name; they are changed in place.
        lr: AdamW's learning rate; weights do not decay.
        steps: how many.
        path: the file of the run's state, from which it goes on; whoever has saved what was
            learned removes it.
        identity: of the run; the state of another one is refused.
        save_every: steps between two saves; 0: none are made.
    """

    parameters: Mapping[str, Tensor]
    lr: float
    steps: int
    path: Path
    identity: str
    save_every: int

    def run(self, loss: Callable[[int], Tensor], what: str, progress: OnProgress) -> None:
        """Make the steps that are left.

        Args:
            loss: makes a step's loss, a scalar, from its number.
            what: the work, as `progress` is told of it, with steps made and all steps.
            progress: called before each step, and at the end.

        Raises:
            ArtifactError: the state is that of another run, or damaged.
            OSError: it cannot be written.
        """
        tensors = list(self.parameters.values())
        adam = torch.optim.AdamW(tensors, lr=self.lr, weight_decay=0.0)
        for step in range(self._resumed(adam), self.steps):
            progress(what, step, self.steps)
            value = loss(step)
            adam.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(tensors, CLIPPED)
            adam.step()
            if self.save_every and (step + 1) % self.save_every == 0:
                self._save(adam, step + 1)
        progress(what, self.steps, self.steps)

    def _save(self, adam: torch.optim.Optimizer, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        values = {name: each.detach() for name, each in self.parameters.items()}
        torch.save(
            {"of": self.identity, "step": step, "values": values, "adam": adam.state_dict()}, new
        )
        new.replace(self.path)

    def _resumed(self, adam: torch.optim.Optimizer) -> int:
        """Take the state that an interrupted run left, if any; return the steps it had made."""
        if not self.path.exists():
            return 0
        device = next(iter(self.parameters.values())).device
        try:
            found = torch.load(self.path, weights_only=True, map_location=device)
            step = int(found["step"])
            if found["of"] == self.identity:
                with torch.no_grad():
                    for name, each in self.parameters.items():
                        each.copy_(found["values"][name])
                adam.load_state_dict(found["adam"])
                return step
        except Exception as error:
            raise ArtifactError(f"{self.path}: it is damaged ({error}); delete it.") from error
        raise ArtifactError(
            f"{self.path}: it is of another run (another model, other data or settings); give "
            "another --out, or delete it."
        )
