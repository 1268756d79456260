"""vLLM's interface of logits processors: its own where it is installed, else what 0.32 has of it.

The stand-in tells of a batch what vLLM's `BatchUpdateBuilder` tells; `Batch` does what vLLM's
`InputBatch` does with requests between two steps.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum, auto
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

INSTALLED = find_spec("vllm") is not None
V1 = "vllm.v1.sample.logits_processor"
V2 = "vllm.v1.worker.gpu.sample.logits_processor"


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list[int]
    added: list[tuple]
    moved: list[tuple]


class BatchUpdateBuilder:
    def __init__(self) -> None:
        self._removed: list[int] = []
        self.added: list[tuple] = []
        self.moved: list[tuple] = []

    @property
    def removed(self) -> list[int]:
        self._removed.sort(reverse=True)
        return self._removed

    def removed_append(self, index: int) -> None:
        self._removed.append(index)

    def peek_removed(self) -> int | None:
        return self.removed[-1] if self.removed else None

    def pop_removed(self) -> int | None:
        return self.removed.pop() if self.removed else None

    def get_and_reset(self, batch_size: int) -> BatchUpdate | None:
        if not (self._removed or self.added or self.moved):
            return None
        update = BatchUpdate(batch_size, self.removed, self.added, self.moved)
        self.__init__()
        return update


class RowProcessor(ABC):
    @abstractmethod
    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None: ...

    @abstractmethod
    def apply(self, logits: Any) -> Any: ...

    @abstractmethod
    def is_argmax_invariant(self) -> bool: ...

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None: ...


class SlotProcessor(ABC):
    @abstractmethod
    def apply(self, logits: Any, ctx: Any) -> Any: ...


def stand_in(monkeypatch: pytest.MonkeyPatch, slots: bool = True) -> Any:
    """Import `errata.engines.vllm` on the stand-in.

    Args:
        slots: whether the release has the newer runner.
    """
    names = ["vllm", "vllm.tokenizers", "vllm.v1", "vllm.v1.sample", V1]
    if slots:
        names += ["vllm.v1.worker", "vllm.v1.worker.gpu", "vllm.v1.worker.gpu.sample", V2]
    made = {name: ModuleType(name) for name in names}
    for name, module in made.items():
        module.__path__ = []  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    made["vllm.tokenizers"].cached_tokenizer_from_config = (  # type: ignore[attr-defined]
        lambda config: config.tokenizer
    )
    made[V1].LogitsProcessor = RowProcessor  # type: ignore[attr-defined]
    if slots:
        made[V2].LogitsProcessor = SlotProcessor  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "errata.engines.vllm", raising=False)
    return importlib.import_module("errata.engines.vllm")


@dataclass
class Request:
    """A request: its prompt, what it was answered so far, its parameters."""

    prompt: list[int] | None
    params: Any
    said: list[int] = field(default_factory=list)


class Batch:
    """Requests in rows without gaps, and what is told of them."""

    def __init__(self) -> None:
        interface: Any = importlib.import_module(V1) if INSTALLED else sys.modules[__name__]
        self.moves = interface.MoveDirectionality
        self.builder = interface.BatchUpdateBuilder()
        self.rows: list[Request | None] = []

    def step(self, done: list[int], new: list[Request], swaps: list[tuple[int, int]]) -> Any:
        """Take requests out, others in, close the gaps, swap rows; return what is told of it.

        Args:
            done: rows that are finished.
            swaps: pairs of rows, of the batch as it is then.
        """
        for row in done:
            self.builder.removed_append(row)
            self.rows[row] = None
        for request in new:
            row = self.builder.pop_removed()
            if row is None:
                row = len(self.rows)
                self.rows.append(None)
            self.rows[row] = request
            self.builder.added.append((row, request.params, request.prompt, request.said))
        last = len(self.rows) - 1
        while self.builder.removed:
            while last in self.builder.removed:
                last -= 1
            empty = self.builder.peek_removed()
            if empty >= last:
                break
            self.builder.pop_removed()
            self.rows[empty], self.rows[last] = self.rows[last], None
            self.builder.moved.append((last, empty, self.moves.UNIDIRECTIONAL))
            last -= 1
        self.rows = [request for request in self.rows if request is not None]
        for one, other in swaps:
            if one != other and max(one, other) < len(self.rows):
                self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
                self.builder.moved.append((one, other, self.moves.SWAP))
        return self.builder.get_and_reset(len(self.rows))
