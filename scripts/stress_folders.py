"""What folders of edits stand: many processes at one of them, and hostile or damaged ones.

    python scripts/stress_folders.py [--seconds 60] [--count 200] [--seed 0]

Prints what went wrong, and ends with 1 if anything did. Nothing is downloaded: the models are the
tiny ones of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from families import tiny_model, tiny_tokenizer
from stress_mutations import Setting, mutations
from typer.testing import CliRunner

import errata
from errata import Edit, EditModel
from errata.cli import app
from errata.errors import ErrataError, FolderBusyError

PROMPTS = ["The capital of France is", "Who wrote the book?", "Where is the tower?"]
EDITS = [
    Edit("The capital of France is", "Rome", "France", id="a"),
    Edit("Who wrote the book?", "two brothers", "the book", id="b"),
    Edit("Where is the tower?", "north", "the tower", id="c"),
    Edit("The capital of France is", "York", "France", id="d"),
    Edit("The company was founded by", "the author", "The company", id="e"),
]
METHODS: dict[str, dict[str, Any]] = {
    "folio": {"background": 16, "edits_per_file": 2},
    "grace": {"steps": 2},
    "wise": {"steps": 2, "background": 8, "edits_per_shard": 2, "prefixes": 1, "contrast": 0},
    "knn-lm": {"background": 8},
    "ultraedit": {"turn": 2},
    "rag": {"background": 16},
}
LIMIT = 60
"""Seconds that one command may take."""


def make_base(folder: Path) -> Path:
    """A tiny base model in a folder."""
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def make_artifact(base: Path, method: str, folder: Path) -> Path:
    """A folder of edits of a base model."""
    config = errata.method_class(method).config_class.from_dict({"layer": 2, **METHODS[method]})
    model = EditModel(*errata_base(base, config))
    model.edit(EDITS, check=False)
    model.save_pretrained(folder)
    return folder


def errata_base(base: Path, config: Any) -> tuple[Any, Any, Any]:
    """What an `EditModel` is made of."""
    model, tokenizer = errata.load_base(str(base))
    return model, config, tokenizer


# many processes at one folder


def processes(seconds: int, seed: int) -> list[str]:
    """Four processes read, edit and undo one folder at random; what went wrong, in words.

    Nothing that a process was told is written is lost unless somebody undid it, and no reader meets
    a mix.
    """
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        base = make_base(root / "base")
        folder = make_artifact(base, "folio", root / "edits")
        context = multiprocessing.get_context("forkserver")  # torch is imported once for all
        context.set_forkserver_preload(["errata.model", "errata.cli"])
        queue = context.Queue()
        began = [
            context.Process(target=_work, args=(folder, seconds, seed, n, queue)) for n in range(4)
        ]
        for process in began:
            process.start()
        told: list[tuple[str, str]] = []
        for _ in began:
            told += queue.get(timeout=seconds + 240)
        for process in began:
            process.join()
        there = {edit.id for edit in errata.load(folder).edits}
        wrong = [what for kind, what in told if kind == "wrong"]
        wrote, undone = (
            {what for kind, what in told if kind == name} for name in ("wrote", "undone")
        )
        wrote |= {edit.id for edit in EDITS}
        wrong += [
            f"{name} was written, nobody undid it, and it is gone"
            for name in sorted(wrote - undone - there)
        ]
        wrong += [f"{name} was undone and is there" for name in sorted(undone & there)]
        wrong += [f"{name} is there, and nobody wrote it" for name in sorted(there - wrote)]
        left = {file.name for file in folder.iterdir()}
        wrong += [
            f"{name} was left behind"
            for name in sorted(left)
            if name.endswith((".new", "_lock", "_complete"))
        ]
        return wrong


def _work(folder: Path, seconds: int, seed: int, number: int, queue: Any) -> None:
    """One process: what it was told that it did, as (kind, what)."""
    torch.set_num_threads(1)
    rng, told, count = random.Random(f"{seed} {number}"), list[tuple[str, str]](), 0
    until = time.monotonic() + seconds
    artifact = errata.load(folder)
    base, tokenizer = artifact.base, artifact.tokenizer
    artifact.unload()
    for turn in itertools.count():
        if turn > 3 and time.monotonic() > until:
            break
        do = (
            ("edit", "read")[turn]
            if turn < 2
            else rng.choice(("read", "read", "edit", "edit", "undo", "command"))
        )
        try:
            if do == "command":
                count += 1
                told += _by_command(folder, rng, f"{number}-{count}")
                continue
            model = EditModel.from_pretrained(base, folder, tokenizer)
            try:
                if do == "read":
                    told += _read(model)
                elif do == "edit":
                    count += 1
                    new = Edit(
                        f"Who wrote the book {number} {count}?",
                        "London",
                        f"book {number} {count}",
                        id=f"{number}-{count}",
                    )
                    model.edit([new], check=False)
                    model.save_pretrained(folder)
                    told.append(("wrote", new.id))
                elif gone := [edit.id for edit in model.edits if edit.id.startswith(f"{number}-")]:
                    name = rng.choice(gone)
                    model.undo(name)
                    model.save_pretrained(folder)
                    told.append(("undone", name))
            finally:
                model.unload()
        except FolderBusyError:
            continue  # told so, in one line: nothing was written
        except ErrataError as error:
            told.append(("wrong", f"process {number}, {do}: {error}"))
    queue.put(told)


def _read(model: EditModel) -> list[tuple[str, str]]:
    """Whether the model that was read is whole: each edit is answered by its own leaf."""
    edits = [edit for edit in model.edits if "-" in edit.id][-3:]
    found = model.explain([edit.prompt for edit in edits]) if edits else []
    wrong = [
        ("wrong", f"a reader met a mix: {told.edit_id} answers {edit.id}")
        for edit, told in zip(edits, found, strict=True)
        if told.edit_id not in (None, edit.id)
    ]
    leaves = [leaf.edit.id for leaf in model.method.patch.leaves]
    return (
        wrong
        if leaves == [edit.id for edit in model.edits]
        else [*wrong, ("wrong", "a reader met leaves of other edits")]
    )


def _by_command(folder: Path, rng: random.Random, name: str) -> list[tuple[str, str]]:
    """The command line, in this process: an edit or a list."""
    if rng.random() < 0.5:
        done = CliRunner().invoke(app, ["list", str(folder)])
        return [] if done.exit_code == 0 else [("wrong", f"list: {done.output}")]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        row = {
            "id": name,
            "prompt": f"Who wrote the book {name}?",
            "target": "Paris",
            "subject": f"book {name}",
        }
        file.write(json.dumps(row) + "\n")
        file.flush()
        done = CliRunner().invoke(
            app, ["edit", str(folder), "--edits", file.name, "--no-check", "--wait", "30"]
        )
    if done.exit_code == 0:
        return [("wrote", name)]
    return [] if "is being written" in done.output else [("wrong", f"edit: {done.output}")]


# hostile and damaged folders


def hostile(count: int, seed: int) -> list[str]:
    """Open, list, ask and undo many spoiled folders; return what went wrong, in words.

    Each must be refused in one line, or answer as the folder did before it was spoiled; nothing
    outside it is touched.
    """
    rng, wrong = random.Random(seed), list[str]()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        base = make_base(root / "base")

        @cache
        def good(method: str) -> tuple[Path, list[str]]:
            folder = make_artifact(base, method, root / "good" / method)
            return folder, errata.load(folder).ask(PROMPTS)

        outside = root / "outside"
        outside.mkdir()
        (outside / "mine.txt").write_text("mine")
        (outside / "edits.jsonl").write_text("mine too")
        order = mutations()
        for number in range(count):
            name, mutate = order[number % len(order)] if number < len(order) else rng.choice(order)
            method = (
                "folio" if number % 2 or name.startswith("folio") else rng.choice(list(METHODS))
            )
            spoiled = root / "spoiled" / str(number)
            folder, right = good(method)
            shutil.copytree(folder, spoiled / "edits")
            what = mutate(Setting(spoiled / "edits", base, outside, spoiled, rng)) or ""
            told = f"{number}, {method}, {name} {what}"
            before = _seen(outside), _seen(base)
            for problem in _tried(spoiled / "edits", right):
                wrong.append(f"{told}: {problem}")
            if (_seen(outside), _seen(base)) != before:
                wrong.append(f"{told}: something outside the folder was touched")
            shutil.rmtree(spoiled)
    return wrong


def _seen(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(f): (f.read_bytes(), f.stat().st_mtime_ns)
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def _tried(folder: Path, right: list[str]) -> Iterator[str]:
    """What goes wrong with a folder, by the API and by the command line."""
    held = _held(folder)
    try:
        with _within(LIMIT):
            answers = errata.load(folder).ask(PROMPTS)
        if answers != right:
            yield f"opened, and answers {answers} instead of {right}"
    except ErrataError as error:
        if "\n" in str(error):
            yield f"an error of several lines: {error}"
    except BaseException as error:
        yield f"load: {type(error).__name__}: {error}"
    if _held(folder) != held:
        yield "a reader wrote into it"
    for words in (
        ["list", str(folder)],
        ["ask", str(folder), *PROMPTS, "--json"],
        ["undo", str(folder), "a"],
    ):
        try:
            with _within(LIMIT):
                done = CliRunner().invoke(app, words)
        except TimeoutError:
            yield f"{words[0]}: took more than {LIMIT} s"
            continue
        said = [line for line in done.stderr.splitlines() if line.startswith("errata: ")]
        if done.exit_code not in (0, 1, 2) or not isinstance(done.exception, SystemExit | None):
            yield f"{words[0]}: ended with {done.exit_code}, {done.exception!r}"
        elif "unexpected" in done.output or "Traceback" in done.output:
            yield f"{words[0]}: {done.output}"
        elif done.exit_code and len(said) != 1:
            yield f"{words[0]}: {len(said)} lines of errors: {done.output}"
        elif words[0] == "ask" and done.exit_code == 0:
            answers = [row["answer"] for row in json.loads(done.stdout)]
            if answers != right:
                yield f"ask: {answers} instead of {right}"


def _held(folder: Path) -> dict[str, tuple[int, int]]:
    return (
        {f.name: (f.lstat().st_size, f.lstat().st_mtime_ns) for f in sorted(folder.iterdir())}
        if folder.is_dir()
        else {}
    )


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` when what is inside takes longer."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    """Both, on the command line."""
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--seconds", type=int, default=60)
    given.add_argument("--count", type=int, default=200)
    given.add_argument("--seed", type=int, default=0)
    options = given.parse_args()
    wrong = processes(options.seconds, options.seed) + hostile(options.count, options.seed)
    for each in wrong:
        print(each)
    print(
        f"{len(wrong)} failures: {options.seconds} s of four processes, "
        f"{options.count} damaged folders"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
