"""Stresses errata for minutes: processes on one folder, threads on one model, hostile input.

    python scripts/stress.py [--seed 0] [--quick]

Four parts: 4 processes that read, write and undo one folder at random for 2 minutes; 8 threads that
ask one model while a ninth edits it; 3,000 edit lines out of a fuzzer; 200 hostile or damaged
folders. Every part says what went wrong, in words; the exit code is 1 if anything did. `--quick` is
a tenth of all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import stress_folders
import stress_lines
import stress_threads

SHOWN = 20
"""Failures of a part that are shown one by one."""


def main() -> None:
    """Run the four parts and say what went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    given = parser.parse_args()
    share = 10 if given.quick else 1
    parts: dict[str, Callable[[], list[str]]] = {
        f"4 processes on one folder, {120 // share} s": lambda: stress_folders.processes(
            120 // share, given.seed
        ),
        f"8 threads on one model, {60 // share} s": lambda: stress_threads.threads(
            60 // share, given.seed
        ),
        f"{3000 // share} edit lines": lambda: stress_lines.lines(3000 // share, given.seed),
        f"{200 // share} hostile folders": lambda: stress_folders.hostile(200 // share, given.seed),
    }
    failed = 0
    for name, run in parts.items():
        print(f"{name} ...", flush=True)
        begun = time.monotonic()
        found = run()
        failed += len(found)
        print(f"{name}: {len(found)} failures in {time.monotonic() - begun:.0f} s", flush=True)
        for failure in found[:SHOWN]:
            print(f"  {failure}")
        if len(found) > SHOWN:
            print(f"  ... and {len(found) - SHOWN} more")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
