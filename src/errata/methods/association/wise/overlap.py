"""How much random masks overlap: what WISE's theorem expects of shards."""

from __future__ import annotations

import math
from dataclasses import dataclass

from errata.config import check_range
from errata.errors import ConfigError


@dataclass(frozen=True)
class Overlap:
    """Expected overlap of independent random masks, as shares of all entries.

    After WISE, arXiv 2405.14768, theorem 2.1.

    Attributes:
        pair: entries in two given masks, rho^2.
        every: entries in all k masks, rho^k. WISE does best near .03.
        exactly: k + 1 numbers; the j-th is the share of entries in exactly j of the k masks.
        union: entries in at least one mask.
    """

    pair: float
    every: float
    exactly: tuple[float, ...]
    union: float

    def deviation(self, size: int) -> float:
        """Standard deviation of the number of entries that are in all masks, of `size` entries."""
        return math.sqrt(self.every * (1 - self.every) * size)


def expected_overlap(rho: float, k: int) -> Overlap:
    """Return the overlap of k masks that each take every entry with probability rho, independently.

    Raises:
        ConfigError: rho is outside [0, 1], or k is below 1.
    """
    check_range("rho", rho, 0, 1)
    if k < 1:
        raise ConfigError(f"k is {k}; there must be at least one mask.")
    exactly = tuple(math.comb(k, j) * rho**j * (1 - rho) ** (k - j) for j in range(k + 1))
    return Overlap(pair=rho**2, every=rho**k, exactly=exactly, union=1 - (1 - rho) ** k)
