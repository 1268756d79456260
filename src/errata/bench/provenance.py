"""Records where a figure comes from: versions, commit, machine, time. It reads nothing else."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import errata


def provenance() -> dict[str, Any]:
    """Return versions, commit, machine and time, to be compared when figures differ."""
    return {**_unchanging(), "time": datetime.now(UTC).isoformat(timespec="seconds")}


@functools.cache
def _unchanging() -> dict[str, Any]:
    versions = {
        "errata": errata.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
    }
    return {
        "versions": {**versions, "python": platform.python_version()},
        "commit": _commit(),
        "machine": machine,
    }


def _commit() -> str | None:
    """Return the source's commit, "+" behind it if files were changed; None outside a checkout."""
    root = Path(errata.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--", "src") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
