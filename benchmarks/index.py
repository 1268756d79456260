"""Measures what `KeyIndex` takes for a lookup and a deletion, among 1,000 to 100,000 keys.

    python benchmarks/index.py [--sizes 1000 10000 100000] [--width 4096] [--lookups 200] [--rivals]

Keys are random (independent normal numbers), or clustered as those of a language model's prompts
are: a common offset, a few hundred strong directions with falling strength, clusters, and some
noise in all directions. Three kinds of query:

- near: a stored key, moved by a twentieth of the median distance between keys; within twice as
  much, as a memory asks;
- far: a fresh key of the same kind, asked the same way, so mostly with nothing to find;
- open: such a fresh key asked for its nearest however far; on random keys no sketch can help, and
  all are read.

Recall is counted against distances to all keys in float64. With --rivals, faiss (`pip install
'errata[index]'`) is measured on the same keys: its flat index, which reads all keys, and its
inverted lists. One thread; seconds are the processor's own (on one thread of an idle machine the
clock says the same).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from errata.retrieval.key_index import KeyIndex

CHECKED = 20


def make_keys(kind: str, n: int, width: int, seed: int) -> Tensor:
    """Draw keys (n, width); another seed draws others from the same population."""
    draw = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.randn(n, width, generator=draw)
    same = torch.Generator().manual_seed(1)
    directions = torch.randn(300, width, generator=same) * torch.logspace(0, -1, 300)[:, None]
    centers, offset = (
        torch.randn(2000, 300, generator=same),
        torch.randn(width, generator=same) * 10,
    )
    keys = torch.empty(n, width)
    for start in range(0, n, 5000):
        size = min(5000, n - start)
        place = centers[torch.randint(2000, (size,), generator=draw)] + 0.5 * torch.randn(
            size, 300, generator=draw
        )
        keys[start : start + size] = (
            place @ directions + torch.randn(size, width, generator=draw) + offset
        )
    return keys


def clocked(calls: list[Callable[[], Any]]) -> dict[str, float]:
    """Time calls; returns median and 95th percentile in milliseconds."""
    took = []
    for call in calls:
        begun = time.process_time()
        call()
        took.append(1e3 * (time.process_time() - begun))
    return {
        "median_ms": round(statistics.median(took), 3),
        "p95_ms": round(sorted(took)[int(0.95 * len(took))], 3),
    }


def recall(index: KeyIndex, keys: Tensor, queries: Tensor, within: float) -> float:
    """The share of queries with the answer that a scan of all keys in float64 gives."""
    right = 0
    for query in queries:
        true = torch.cat(
            [
                torch.linalg.vector_norm(p - query, dim=-1, dtype=torch.float64)
                for p in keys.split(5000)
            ]
        )
        _, numbers = index.nearest(query[None], within=within)
        best = float(true.min())
        right += int(numbers[0, 0]) == (int(true.argmin()) if best <= within else -1)
    return right / len(queries)


def measure(kind: str, n: int, width: int, lookups: int, rivals: bool) -> list[dict[str, Any]]:
    keys, fresh = make_keys(kind, n, width, 2), make_keys(kind, lookups, width, 3)
    apart = torch.pdist(keys[: min(n, 500)]).median().item()
    noise = torch.nn.functional.normalize(
        torch.randn(lookups, width, generator=torch.Generator().manual_seed(4)), dim=-1
    )
    near = keys[torch.linspace(0, n - 1, lookups).long()] + noise * apart / 20
    index = KeyIndex(width)
    begun = time.process_time()
    index.add(range(n), keys)
    build = time.process_time() - begun
    about = {"keys": kind, "n": n, "width": width}
    found = []
    for name, queries, within in (
        ("near", near, apart / 10),
        ("far", fresh, apart / 10),
        ("open", fresh[:CHECKED], math.inf),
    ):
        index.nearest(queries[:1], within=within)
        row = clocked([lambda q=q, r=within: index.nearest(q[None], within=r) for q in queries])
        share = recall(index, keys, queries[:CHECKED], within)
        found.append({**about, "index": "KeyIndex", "query": name, **row, "recall": share})
    if rivals:
        found += [{**about, **row} for row in measure_rivals(keys, near)]
    gone = list(range(0, n, max(1, n // 100)))
    row = clocked([lambda name=name: index.remove([name]) for name in gone])
    left = [
        name
        for name in torch.linspace(0, n - 1, lookups).long().tolist()[:CHECKED]
        if name in index
    ]
    kept = all(int(index.nearest(keys[name][None], within=apart / 10)[1]) == name for name in left)
    found.append({**about, "index": "KeyIndex", "query": "deletion", **row, "recall": float(kept)})
    print(f"{kind}, {n} keys: built in {build:.1f} s", flush=True)
    return found


def measure_rivals(keys: Tensor, queries: Tensor) -> list[dict[str, Any]]:
    """Measure faiss: a flat index, and inverted lists of which 16 of sqrt(n) are read."""
    import faiss

    faiss.omp_set_num_threads(1)
    expected = torch.linspace(0, len(keys) - 1, len(queries)).long()
    found = []
    for name, kind in (
        ("faiss Flat", "Flat"),
        ("faiss IVF, 16 lists read", f"IVF{int(len(keys) ** 0.5)},Flat"),
    ):
        rival = faiss.index_factory(keys.shape[1], kind)
        rival.train(keys[:: max(1, len(keys) // 5000)].contiguous().numpy())
        rival.add(keys.numpy())
        if kind != "Flat":
            rival.nprobe = 16
        got: list[int] = []
        row = clocked(
            [
                lambda q=q, r=rival, got=got: got.append(int(r.search(q[None].numpy(), 1)[1][0, 0]))
                for q in queries
            ]
        )
        right = sum(a == b for a, b in zip(got, expected.tolist(), strict=True)) / len(got)
        found.append({"index": name, "query": "near", **row, "recall": right})
        if kind != "Flat":
            row = clocked(
                [lambda i=i, r=rival: r.remove_ids(torch.tensor([i]).numpy()) for i in range(3)]
            )
            found.append({"index": name, "query": "deletion", **row, "recall": 1.0})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--lookups", type=int, default=200)
    parser.add_argument("--rivals", action="store_true", help="faiss, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for n in given.sizes:
        for kind in ("random", "clustered"):
            found += measure(kind, n, given.width, given.lookups, given.rivals)
    for row in found:
        print(
            f"{row['keys']:9} {row['n']:7,} {row['index']:25} {row['query']:8} "
            f"median {row['median_ms']:9.3f} ms, p95 {row['p95_ms']:9.3f} ms, "
            f"recall {row['recall']:.2f}"
        )


if __name__ == "__main__":
    main()
