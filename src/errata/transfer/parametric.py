"""`ParametricTransfer`: parts of a large model's matrices as where a small one's training starts.

Zhong et al., "Seeking Neural Nuggets: Knowledge Transfer in Large Language Models from a Parametric
Perspective", ICLR 2024, arXiv 2310.11451. On a few samples of a task, each weight of the teacher
counts by its sensitivity |theta * dL/dtheta|. The blocks that count most are kept, as many as the
student has, in order; of each matrix that contiguous part of the student's shape that counts most.
Its largest `rank` directions are where a LoRA on the student's matrix starts; the same product is
taken away from that matrix, so that the start is the student itself. Then the LoRA is trained on
the task.

The rows and columns of two models have nothing to do with each other, so there is no reason why
this should transfer without training, and little with it: `block=random` takes any part instead of
the most sensitive, `shuffled` the same numbers without their order, and `none` starts a LoRA as
usual. Compare with all three.

What departs: matrices outside the blocks (embeddings, head) are left alone. Where the teacher has
fewer blocks, the student's that get one are spread evenly; what does not fit starts as usual, and
is counted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from errata.config import MethodConfig, NonNegativeFloat, NonNegativeInt, PositiveInt
from errata.errors import ConfigError, UsageError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.lm.weights import read_weight
from errata.progress import OnProgress
from errata.solvers.descent import Descent, paired
from errata.storage.cache import fingerprint
from errata.unlearning.objectives import nll
from errata.unlearning.parameters import LowRank
from errata.unlearning.passages import Passage, digest
from errata.unlearning.scored import Side, scored

STATE = "transfer-state.pt"
"""The file from which an interrupted run goes on. Whoever has saved what was learned removes it."""
LOOKING, TRAINING = "looking for the teacher's sensitive weights", "training the student"


@dataclass(frozen=True)
class ParametricTransferConfig(MethodConfig):
    """Settings of parametric transfer; the defaults are the paper's, but for the batch.

    Attributes:
        block: which part of a teacher's matrix is taken: the most `sensitive`, a `random` one, the
            most sensitive one's numbers in random order (`shuffled`), or `none`, which is LoRA.
        samples: the first of the passages, on which sensitivity is measured.
        rank: of what is taken, and of the LoRA.
        epochs: times that each passage is seen.
        batch: passages at a step.
        lr: AdamW's learning rate.
        save_every: steps between two saves, from which an interrupted run goes on.
    """

    method: ClassVar[str] = "parametric-transfer"

    block: Literal["sensitive", "random", "shuffled", "none"] = "sensitive"
    samples: PositiveInt = 32
    rank: PositiveInt = 16
    epochs: PositiveInt = 3
    batch: PositiveInt = 16
    lr: NonNegativeFloat = 3e-4
    save_every: NonNegativeInt = 50


def sensitivity(lm: LM, passages: Sequence[Passage], progress: OnProgress) -> dict[str, Tensor]:
    """Return the sum over passages of |theta * dL/dtheta|, (d_out, d_in), of each matrix, by path.

    L is the mean NLL of a passage's answer; the matrices are the linear ones of the blocks.
    """
    paths = _linear_paths(lm)
    weights = {path: lm.model.get_submodule(path).weight for path in paths}
    found = {path: torch.zeros_like(read_weight(lm.model.get_submodule(path))) for path in paths}
    rows = [row for passage in passages for row in passage.rows(lm)]
    before = {path: weight.requires_grad for path, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for number, row in enumerate(rows):
            progress(LOOKING, number, len(rows))
            loss = -scored(lm, [row]).log_probs.mean()
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for path, gradient in zip(paths, gradients, strict=True):
                weight = weights[path].detach()
                part = (weight * gradient).abs()
                found[path] += part if part.shape == found[path].shape else part.T
    finally:
        for path, weight in weights.items():
            weight.requires_grad_(before[path])
    return found


def best_block(scores: Tensor, rows: int, columns: int) -> tuple[int, int]:
    """Return where the (rows, columns) part of a matrix (m, n) with the largest sum begins.

    By two-dimensional prefix sums: all parts are summed at once, in fp64.

    Raises:
        ConfigError: the part is larger than the matrix.
    """
    m, n = scores.shape
    if rows > m or columns > n:
        raise ConfigError(f"a part of {rows} x {columns} does not fit a matrix of {m} x {n}.")
    sums = torch.zeros(m + 1, n + 1, dtype=torch.float64, device=scores.device)
    sums[1:, 1:] = scores.double().cumsum(0).cumsum(1)
    whole = sums[rows:, columns:] - sums[:-rows, columns:]
    whole = whole - sums[rows:, :-columns] + sums[:-rows, :-columns]
    place = int(whole.argmax())
    return place // whole.shape[1], place % whole.shape[1]


class ParametricTransfer:
    """A run of parametric transfer.

    Args:
        teacher: the model that parts are taken of; it is not changed.
        student: the model that learns; it is changed.
        config: the settings.
        passages: the task: questions with their answers.
        scores: the teacher's `sensitivity`, where it was measured before; None: it is measured.

    Attributes:
        taken: student's matrix -> (teacher's matrix, row, column) where what it starts with begins.
        left: the student's matrices that start as in LoRA.

    Raises:
        UsageError: there is no passage.
        PromptTooLongError: a question with its answer does not fit a model's context.
    """

    def __init__(
        self,
        teacher: LM,
        student: LM,
        config: ParametricTransferConfig,
        passages: Sequence[Passage],
        scores: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not passages:
            raise UsageError("there is no passage to learn from.")
        self.teacher, self.lm, self.config = teacher, student, config
        self.passages = list(passages)
        self._scores = scores
        self.taken: dict[str, tuple[str, int, int]] = {}
        self.left: list[str] = []
        self._base = fingerprint(student.model)
        self._rows: list[Row] = [row for passage in passages for row in passage.rows(student)]

    def run(self, folder: Path, progress: OnProgress) -> PreTrainedModel:
        """Take, and train; return the student, with what it has learned in its weights.

        Args:
            folder: where the state is kept, see `STATE`.
            progress: called with (what, done, in all).

        Raises:
            ArtifactError: the state there is that of another run.
            ConfigError: no matrix of the teacher fits the student's.
            UsageError: PEFT is not installed.
        """
        config = self.config
        parts = {} if config.block == "none" else self._parts(progress)
        trained = LowRank(self.lm, config.rank, config.seed)
        trained.start_from(parts)
        steps = paired(len(self._rows), 0, config.batch, config.epochs, config.seed)
        path, identity = folder / STATE, self._identity()
        descent = Descent(
            trained.parameters, config.lr, len(steps), path, identity, config.save_every
        )
        self.lm.model.eval()

        def loss(step: int) -> Tensor:
            return nll(Side(self.lm, trained, [self._rows[number] for number in steps[step][0]]))

        descent.run(loss, TRAINING, progress)
        return trained.finish()

    def record(self, seconds: float) -> dict[str, Any]:
        """Return what was asked for and done, ready for JSON."""
        return {
            "teacher": self.teacher.name,
            "settings": self.config.to_dict(),
            "student": self._base,
            "passages": {"passages": len(self.passages), "sha256": digest(self.passages)},
            "taken": {path: list(place) for path, place in self.taken.items()},
            "left": self.left,
            "seconds": round(seconds, 1),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    # what is taken

    def _parts(self, progress: OnProgress) -> dict[str, Tensor]:
        """Return the teacher's part for each matrix of the student that one fits, by its path."""
        scores = self._scores
        if scores is None:
            scores = sensitivity(self.teacher, self.passages[: self.config.samples], progress)
        generator = torch.Generator().manual_seed(self.config.seed)
        parts = {}
        for layer, source in self._blocks(scores).items():
            for path in self.lm.architecture.linear_paths(self.lm.model, layer):
                own = read_weight(self.lm.model.get_submodule(path))
                theirs = self._counterpart(path, layer, source)
                if theirs not in scores or not _fits(own.shape, scores[theirs].shape):
                    continue
                rows, columns = own.shape
                place = self._place(scores[theirs], rows, columns, generator)
                matrix = read_weight(self.teacher.model.get_submodule(theirs))
                part = matrix[place[0] : place[0] + rows, place[1] : place[1] + columns]
                if self.config.block == "shuffled":
                    order = torch.randperm(part.numel(), generator=generator)
                    part = part.reshape(-1)[order].reshape(part.shape)
                parts[path] = part.clone()
                self.taken[path] = (theirs, *place)
        self.left = [path for path in _linear_paths(self.lm) if path not in parts]
        if not parts:
            raise ConfigError(
                "no matrix of the teacher's blocks has the name of one of the student's and is as "
                "large; take a larger teacher of the same build, or block=none."
            )
        return parts

    def _blocks(self, scores: Mapping[str, Tensor]) -> dict[int, int]:
        """Return the student's blocks and the teacher's that each is given."""
        totals = torch.tensor(
            [
                sum(float(scores[path].double().sum()) for path in paths)
                for paths in (
                    self.teacher.architecture.linear_paths(self.teacher.model, layer)
                    for layer in range(self.teacher.architecture.n_layers)
                )
            ]
        )
        blocks, given = self.lm.architecture.n_layers, len(totals)
        kept = sorted(totals.topk(min(blocks, given)).indices.tolist())
        places = torch.linspace(0, blocks - 1, len(kept)).round().long().tolist()
        return dict(zip(places, kept, strict=True))

    def _counterpart(self, path: str, layer: int, source: int) -> str:
        inside = path.removeprefix(f"{self.lm.architecture.blocks}.{layer}.")
        return f"{self.teacher.architecture.blocks}.{source}.{inside}"

    def _place(
        self, scores: Tensor, rows: int, columns: int, generator: torch.Generator
    ) -> tuple[int, int]:
        if self.config.block != "random":
            return best_block(scores, rows, columns)
        most = scores.shape[0] - rows + 1, scores.shape[1] - columns + 1
        row, column = (int(torch.randint(each, (1,), generator=generator)) for each in most)
        return row, column

    def _identity(self) -> str:
        parts = [self._base, fingerprint(self.teacher.model), self.config.to_dict()]
        text = json.dumps([*parts, digest(self.passages)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _linear_paths(lm: LM) -> list[str]:
    """Return the paths of all linear modules of the blocks."""
    layers = range(lm.architecture.n_layers)
    return [path for layer in layers for path in lm.architecture.linear_paths(lm.model, layer)]


def _fits(small: Sequence[int], large: Sequence[int]) -> bool:
    return small[0] <= large[0] and small[1] <= large[1]
