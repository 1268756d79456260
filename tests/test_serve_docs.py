"""The commands of docs/serve.md, one after another, as they are printed there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "serve.md"


@pytest.mark.long
@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")), reason="the page's commands use curl and jq"
)
def test_the_five_commands_print_what_the_page_says(tmp_path: Path) -> None:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    steps = [
        tuple(part.strip() for part in re.split(r"(?<!\\)\n", step, maxsplit=1))
        for block in blocks[:2]
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    ]
    assert len(steps) == 5
    (start, greeting), *others = steps
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        ["sh", "-c", f"exec {start}"],
        cwd=tmp_path, env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            begun = time.monotonic()
            while (line := server.stdout.readline()) and greeting not in line:
                assert time.monotonic() - begun < 120
            assert greeting in line
            for command, printed in others:
                done = subprocess.run(
                    command, shell=True, capture_output=True, text=True, timeout=60, check=True
                )
                assert done.stdout.strip() == printed, command
        finally:
            server.terminate()
