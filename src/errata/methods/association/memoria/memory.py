"""`EngramMemory`: Memoria's three memories, written and asked by numbers that stay the same.

The memories are those of the package `memoria-pytorch`. Nothing is drawn at random here: of
long-term engrams that fired equally often with a short-term one, the oldest is looked at first, so
that writing the same again makes the same memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from errata.errors import ConfigError

Shares = Callable[[Sequence[int], Sequence[int]], Tensor]
"""(the numbers of engrams that attend, the numbers of n others) -> the share of each of these."""


@dataclass(frozen=True)
class MemorySizes:
    """How large the memories are, and how long engrams live.

    Attributes:
        short_term: engrams that short-term memory has room for.
        reminded_short_term, reminded_long_term: engrams of either that come to mind at once.
        search_depth: steps from one long-term engram to the one that fired with it most often.
        lifespan: writings that an engram outlives without ever coming to mind.
        lifespan_gain: writings that an engram gains that gets an average share of attention.
    """

    short_term: int
    reminded_short_term: int
    reminded_long_term: int
    search_depth: int
    lifespan: int
    lifespan_gain: float


def memoria_package() -> Any:
    """Return the package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import memoria
    except ImportError as error:
        raise ConfigError(
            "memoria needs the package memoria-pytorch: pip install 'errata[memoria]'."
        ) from error
    return memoria


class EngramMemory:
    """Engrams, in the order in which they were written; each is a vector that it is found by.

    Args:
        sizes: of the memories.
        shares: how much engrams attend to others.
    """

    def __init__(self, sizes: MemorySizes, shares: Shares) -> None:
        self.sizes, self._shares, self._written = sizes, shares, 0
        self._memory = _memory_of_one(memoria_package().Memoria)(
            num_reminded_stm=sizes.reminded_short_term,
            stm_capacity=sizes.short_term,
            ltm_search_depth=sizes.search_depth,
            initial_lifespan=sizes.lifespan,
            num_final_ltms=sizes.reminded_long_term,
            track_id=True,
        )

    def write(self, working: Tensor) -> None:
        """Take engrams (m, width) in, whose numbers go on from the last ones.

        Those that come to mind fire together with them, and live on for as long as they are
        attended to; all others come one writing closer to their end.
        """
        memory, first = self._memory, self._written
        self._written += len(working)
        memory.add_working_memory(working[None])
        _, indices = memory.remind()
        there = indices[0] >= 0
        gains = torch.zeros(indices.shape)
        if there.any():
            numbers = memory.engrams.engram_ids[0, indices[0, there]].tolist()
            shares = self._shares(range(first, self._written), numbers)
            gains[0, there] = self.sizes.lifespan_gain * len(shares) * shares.cpu()
        memory.adjust_lifespan_and_memories(indices, gains)

    def reminded(self, working: Tensor) -> list[int]:
        """Return the numbers of the engrams that vectors (m, width) bring to mind, ascending.

        Nothing is written: whoever is asked and in what order, the memory stays the same.
        """
        memory = copy.copy(self._memory)  # which gets engrams of its own
        if not len(memory.engrams):
            return []
        memory.add_working_memory(working[None])
        _, indices = memory.remind()
        return sorted(memory.engrams.engram_ids[0, indices[0][indices[0] >= 0]].tolist())

    @property
    def lifespans(self) -> dict[int, float]:
        """The writings that each engram still outlives, by number; those that are gone are not
        there.
        """
        engrams = self._memory.engrams
        if not len(engrams):
            return {}
        return dict(zip(engrams.engram_ids[0].tolist(), engrams.lifespan[0].tolist(), strict=True))

    @property
    def in_long_term(self) -> set[int]:
        """The numbers of the engrams that are in long-term memory."""
        engrams = self._memory.engrams
        if not len(engrams):
            return set()
        return set(engrams.engram_ids[0, engrams.longterm_memory_mask[0]].tolist())

    def __len__(self) -> int:
        return len(self._memory.engrams)


def _memory_of_one(package_memory: type) -> Any:
    """Return the package's memory for one text at a time, in which nothing is drawn."""

    class Memory(package_memory):  # type: ignore[misc]
        def _find_initial_longterm_memory(self, reminded: Tensor) -> Tensor:
            """Return the long-term engrams that fired most often with each reminded one, (1, n)."""
            long_term = self.engrams.longterm_memory_mask[0]
            counts = self.engrams.induce_counts[0, reminded[0][reminded[0] >= 0]]
            if not len(counts) or not long_term.any():
                return reminded.new_zeros((1, 0))
            often: Tensor = torch.unique(counts.masked_fill(~long_term, -1).argmax(1))
            return often[None]

        def _select_final_ltms(self, working: Any, found: Tensor) -> Tensor:
            """Return the nearest of what was found, (1, n); the package weighs a place where
            nothing was found as if there were a vector of zeros.
            """
            nearest: Tensor = super()._select_final_ltms(working, found[:, found[0] >= 0])
            return nearest

    return Memory
