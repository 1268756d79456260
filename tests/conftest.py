"""One thread, no network, one time, one cache for all workers, and `from families import ...`."""

from __future__ import annotations

import atexit
import functools
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import typer.testing

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["SOURCE_DATE_EPOCH"] = (
    "1790000000"  # edits are stamped with one time: folders are compared byte for byte
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers use that of the process which began them
    os.environ["ERRATA_CACHE"] = tempfile.mkdtemp(prefix="errata-cache-")
    atexit.register(shutil.rmtree, os.environ["ERRATA_CACHE"], ignore_errors=True)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ERRATA_PROGRESS", "off")  # stderr is compared
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which only those do who run tests
sys.path.insert(0, str(Path(__file__).parent))
typer.testing._get_command = functools.cache(typer.testing._get_command)  # built once
gc.disable()  # while torch, transformers and the tests are imported


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture
def few_training_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model's plans have eight cases to train on instead of a thousand."""
    monkeypatch.setattr("errata.bench.plan.TRAINING", 8)
