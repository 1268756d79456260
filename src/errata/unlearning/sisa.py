"""`Sisa`: records learned in shards, each by a LoRA of its own, so that one can be taken out again.

SISA (Sharded, Isolated, Sliced, Aggregated; Bourtoule et al., "Machine Unlearning", IEEE S&P 2021,
arXiv 1912.03817), with a LoRA for each shard instead of a whole model. As in the paper, the turn of
slice r goes on from the checkpoint after slice r - 1 and trains on slices 0 to r; taking a record
out retrains its shard alone, from the checkpoint before the record's slice.

Departures: each turn begins with a new optimizer, so that a checkpoint is the LoRA and nothing
else. All that is random follows from the seed, the shard and the slice: a shard that is retrained
without a record is to the bit what it had been, had the record never been there, on the same
machine with the same number of threads. Who is left lies where they lay, so that how many lie in a
shard still tells that one is gone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errata.lm import LM
from errata.lm.encoding import Row
from errata.progress import OnProgress, report
from errata.saving.base_models import name_of
from errata.solvers.descent import CLIPPED
from errata.storage import state
from errata.storage.identity import identity_of
from errata.unlearning.config import SisaConfig
from errata.unlearning.objectives import nll
from errata.unlearning.parameters import LowRank
from errata.unlearning.passages import Passage
from errata.unlearning.scored import Side
from errata.unlearning.shard_folder import ShardFolder

ENCODING, TRAINING = "encoding a shard", "training shards"


@dataclass(frozen=True)
class Cost:
    """What training cost.

    Attributes:
        shards: those that were trained, from 0.
        steps: made.
        steps_of_all: of training all shards from nothing.
        seconds: taken.
    """

    shards: tuple[int, ...]
    steps: int
    steps_of_all: int
    seconds: float

    @property
    def seconds_of_all(self) -> float:
        """What all shards would take from nothing, by the steps; 0 where none was made."""
        return self.seconds / self.steps * self.steps_of_all if self.steps else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it, ready for JSON."""
        return {
            "shards": list(self.shards), "steps": self.steps, "steps_of_all": self.steps_of_all,
            "seconds": round(self.seconds, 2), "seconds_of_all": round(self.seconds_of_all, 2),
        }  # fmt: skip


class Sisa:
    """Trains the LoRAs of a folder's shards.

    Args:
        lm: the base model; between calls it is what it was.
        folder: the records and checkpoints.

    Raises:
        BaseMismatchError: the folder was made with another model.
    """

    def __init__(self, lm: LM, folder: ShardFolder) -> None:
        self.lm, self.folder, self.config = lm, folder, folder.config
        folder.check(identity_of(lm.model, lm.tokenizer))
        lm.model.eval()  # dropout would be no part of what is learned
        self._rows: dict[tuple[str, str], list[Row]] = {}

    @classmethod
    def begin(
        cls, lm: LM, path: Path, passages: Sequence[Passage], config: SisaConfig | None = None
    ) -> Sisa:
        """Deal passages to shards in a new folder; nothing is trained yet.

        Raises:
            EditError, UsageError, ArtifactError, StorageError: see `ShardFolder.create`.
            PromptTooLongError: a question with its answer does not fit; nothing is then written.
        """
        for each in passages:
            _ = lm.encode(each.prompt, each.text, ".") if each.prompt else each.rows(lm)
        name, identity = name_of(lm.model), identity_of(lm.model, lm.tokenizer)
        base = name, str(lm.model.dtype).removeprefix("torch."), identity
        return cls(lm, ShardFolder.create(path, passages, config or SisaConfig(), base))

    def train(self, progress: OnProgress) -> Cost:
        """Train what is not trained yet, with a checkpoint after each slice.

        It is killed and called again at will. The folder's lock is held, see `storage.locking`.

        Args:
            progress: called with (what, steps made, steps).

        Raises:
            ArtifactError: a checkpoint is damaged.
            StorageError: the disk refused.
            UsageError: PEFT is not installed.
        """
        self.folder.tidy()
        learned = {shard: self.folder.learned(shard) for shard in range(self.config.shards)}
        ahead = [shard for shard, slices in learned.items() if slices < self.config.slices]
        total = sum(self.steps(shard, learned[shard]) for shard in ahead)
        begun, done = time.monotonic(), itertools.count()
        for shard in ahead:
            self._learn(shard, learned[shard], lambda: progress(TRAINING, next(done), total))
        progress(TRAINING, total, total)
        everything = sum(map(self.steps, range(self.config.shards)))
        return Cost(tuple(ahead), total, everything, time.monotonic() - begun)

    def forget(self, passages: Sequence[Passage], progress: OnProgress) -> Cost:
        """Take passages out, and train their shards again from before their first slices.

        From the moment that the records are written, nothing that was trained with the passages is
        used; if the process is killed later, `train` goes on.

        Raises:
            UsageError, EditError: no passage is given, or one is not there; nothing is changed.
            ArtifactError, StorageError: see `train`.
        """
        self.folder.remove(passages)
        return self.train(progress)

    def steps(self, shard: int, first: int = 0) -> int:
        """Return the steps of a shard from the turn of a slice to the last."""
        batches = 0
        for slice_ in range(first, self.config.slices):
            parts = sum(_parts(self.lm, each) for each in self.folder.passages(shard, slice_))
            batches += math.ceil(parts / self.config.batch)
        return self.config.epochs_of_a_slice * batches

    def rows(self, shard: int, last: int) -> list[Row]:
        """Return the tokens of a shard's records, those of its slices up to the last."""
        self._encode(shard)
        passages = self.folder.passages(shard, last)
        return [row for each in passages for row in self._rows[each.prompt, each.text]]

    @contextmanager
    def lora(self, shard: int) -> Iterator[LowRank]:
        """Within a `with` block, have the LoRA of a shard beside the model.

        Raises:
            ArtifactError: it is not trained yet, or damaged.
            UsageError: PEFT is not installed.
        """
        with self._at(shard, self.config.slices) as lora:
            yield lora

    @contextmanager
    def _at(self, shard: int, learned: int) -> Iterator[LowRank]:
        """Have the LoRA of a shard beside the model, as it is after so many slices."""
        values = self.folder.load(shard, learned - 1) if learned else {}
        self._encode(shard)
        lora = LowRank(self.lm, self.config.rank, self._seed(shard))
        try:
            if learned:
                with torch.no_grad():
                    state.copy_into(lora.parameters, values)
            yield lora
        finally:
            lora.remove()

    def _learn(self, shard: int, learned: int, tell: Callable[[], None]) -> None:
        """Train a shard from so many slices on; `tell` is called before each step."""
        with self._at(shard, learned) as lora:
            for slice_ in range(learned, self.config.slices):
                rows = self.rows(shard, slice_)
                self._turn(lora, rows, self._seed(shard, slice_), tell)
                self.folder.save(shard, slice_, lora.parameters)

    def _turn(
        self, lora: LowRank, rows: Sequence[Row], seed: int, tell: Callable[[], None]
    ) -> None:
        """Train a LoRA on rows, at the turn of a slice; `tell` is called before each step."""
        parameters = list(lora.parameters.values())
        adam = torch.optim.AdamW(parameters, lr=self.config.lr, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.config.epochs_of_a_slice if rows else 0):
            order = torch.randperm(len(rows), generator=generator).tolist()
            for start in range(0, len(rows), self.config.batch):
                tell()
                part = [rows[each] for each in order[start : start + self.config.batch]]
                loss = nll(Side(self.lm, lora, part))
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, CLIPPED)
                adam.step()

    def _encode(self, shard: int) -> None:
        """Encode a shard's records, without its LoRA: how an answer ends, says the base model."""
        passages = self.folder.passages(shard, self.config.slices)
        new = [each for each in passages if (each.prompt, each.text) not in self._rows]
        for done, each in enumerate(new):
            report(ENCODING, done, len(new))
            self._rows[each.prompt, each.text] = each.rows(self.lm)

    def _seed(self, shard: int, slice_: int | None = None) -> int:
        """Return the seed of a shard's first values, or of a slice's turn."""
        drawn = hashlib.sha256(f"{self.config.seed} {shard} {slice_}".encode()).digest()
        return int.from_bytes(drawn[:4])


def _parts(lm: LM, passage: Passage) -> int:
    """Return how many rows of tokens a passage makes."""
    return 1 if passage.prompt else len(passage.rows(lm))
