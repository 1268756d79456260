"""Ways to damage a folder of edits, or to forge one with ill intent. It opens nothing.

A forger who changes a file can make its checksum anew (`Setting.signed`), and that of the whole as
far as it is his to make.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from errata.saving.artifact import config_digest

CONFIG, TENSORS, LEDGER, COMPLETE, LOCK = (
    "edit_config.json", "edit_model.safetensors", "edits.jsonl", ".edit_complete", ".edit_lock",
)  # fmt: skip


@dataclass
class Setting:
    """A folder of edits to damage, its base model, a folder that must stay, and spare room."""

    folder: Path
    base: Path
    outside: Path
    place: Path
    rng: random.Random

    def config(self) -> dict[str, Any]:
        """What the config says."""
        said: dict[str, Any] = json.loads((self.folder / CONFIG).read_text())
        return said

    def write(self, about: Any) -> None:
        """Write a config."""
        (self.folder / CONFIG).write_text(json.dumps(about))

    def signed(self, about: dict[str, Any] | None = None) -> None:
        """Renew the checksums and what binds config and tensors: all that a forger can make."""
        about = about or self.config()
        path = self.folder / TENSORS
        save_file(load_file(path), path, {"about": config_digest(about)})
        for name in about["sha256"]:
            if (self.folder / name).is_file():
                about["sha256"][name] = hashlib.sha256(
                    (self.folder / name).read_bytes()
                ).hexdigest()
        self.write(about)

    def file(self) -> Path:
        """One of its files."""
        return self.rng.choice(sorted(self.folder.iterdir()))


Mutation = Callable[[Setting], str | None]
WRONG: list[Any] = [
    None,
    0,
    -1,
    1.5,
    True,
    "",
    "x",
    [],
    {},
    [None],
    {"x": 1},
    10**400,
    -(10**30),
    1e308,
    [[]],
    ["a", "a"],
]
"""What may stand where something else belongs."""


def flip(s: Setting) -> str:
    """A byte."""
    file = s.file()
    content = bytearray(file.read_bytes())
    place = s.rng.randrange(len(content))
    content[place] ^= 1 << s.rng.randrange(8)
    file.write_bytes(content)
    return f"{file.name} at {place}"


def truncate(s: Setting) -> str:
    """The end of a file."""
    file = s.file()
    content = file.read_bytes()
    file.write_bytes(content[: s.rng.randrange(len(content))])
    return file.name


def extend(s: Setting) -> str:
    """Something behind a file."""
    file = s.file()
    file.write_bytes(file.read_bytes() + s.rng.randbytes(9))
    return file.name


def remove(s: Setting) -> str:
    """A file."""
    file = s.file()
    file.unlink()
    return file.name


def swap(s: Setting) -> str:
    """Two files."""
    one, other = s.rng.sample(sorted(s.folder.iterdir()), 2)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    return f"{one.name} {other.name}"


def instead(kind: str) -> Mutation:
    """Something that is no file in the place of one."""

    def spoil(s: Setting) -> str:
        file = s.file()
        content = file.read_bytes()
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "zero":
            file.symlink_to("/dev/zero")
        elif kind == "link":
            (s.place / "elsewhere").write_bytes(content)
            file.symlink_to(s.place / "elsewhere")
        elif kind == "loop":
            file.symlink_to(file)
        elif kind == "folder":
            file.mkdir()
        elif kind == "sparse":
            with file.open("wb") as sparse:
                sparse.truncate(2**40)
        return file.name

    return spoil


def marker(what: Callable[[Setting], Any]) -> Mutation:
    """A marker of a write that is under way."""

    def spoil(s: Setting) -> None:
        said = what(s)
        (s.folder / COMPLETE).write_bytes(
            said if isinstance(said, bytes) else json.dumps(said).encode()
        )

    return spoil


def lock(kind: str) -> Mutation:
    """Something in the place of the lock."""

    def spoil(s: Setting) -> None:
        path = s.folder / LOCK
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(s.outside / "mine.txt")
        elif kind == "folder":
            path.mkdir()
        else:
            path.write_bytes(b"\xff" * 5000)

    return spoil


def field(s: Setting) -> str:
    """A field of the config is gone or something else."""
    about = s.config()
    name = s.rng.choice(list(about))
    return _spoiled(s, about, about, name)


def setting(s: Setting) -> str:
    """A setting is what it cannot be."""
    about = s.config()
    name = s.rng.choice(list(about["settings"]))
    about["settings"][name] = s.rng.choice([[], {}, "x", [None], 10**400, -(10**9)])
    s.write(about)
    return name


def unknown_setting(s: Setting) -> None:
    """A setting that there is not."""
    about = s.config()
    about["settings"]["x"] = 1
    s.signed(about)


def state(s: Setting) -> str:
    """A value of the state is gone or of another type; signed."""
    about = s.config()
    if not about["state"]:
        return "nothing"
    name = s.rng.choice(list(about["state"]))
    return _spoiled(s, about, about["state"], name, signed=True)


def deep_state(s: Setting) -> str:
    """A value somewhere within the state is of another type; signed."""
    about = s.config()
    held: Any = about["state"]
    path = ""
    while isinstance(held, dict | list) and held:
        key = s.rng.choice(list(held)) if isinstance(held, dict) else s.rng.randrange(len(held))
        path += f"/{key}"
        inner = held[key]
        if not isinstance(inner, dict | list) or not inner or s.rng.random() < 0.3:
            wrong = [
                each
                for each in WRONG
                if type(each) is not type(inner) and not (_number(each) and _number(inner))
            ]
            held[key] = s.rng.choice(wrong)
            if isinstance(inner, float | int | str) or inner is None:
                held[key] = s.rng.choice([{}, [[]], True if not isinstance(inner, bool) else "x"])
            s.signed(about)
            return path
        held = inner
    return "nothing"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spoiled(
    s: Setting, about: dict[str, Any], held: dict[str, Any], name: str, signed: bool = False
) -> str:
    wrong = [each for each in WRONG if type(each) is not type(held[name])]
    if s.rng.random() < 0.3:
        del held[name]
    else:
        held[name] = s.rng.choice(wrong)
    if signed:
        s.signed(about)
    else:
        s.write(about)
    return name


def empty_state(s: Setting) -> str | None:
    """No state, and no word of it; signed."""
    about = s.config()
    if not about["state"]:
        return "nothing"
    about["state"] = {}
    s.signed(about)
    return None


def raw(content: bytes) -> Mutation:
    """Another config altogether."""

    def spoil(s: Setting) -> None:
        (s.folder / CONFIG).write_bytes(content)

    return spoil


def summed(names: list[str]) -> Mutation:
    """The config names files that are not the artifact's."""

    def spoil(s: Setting) -> None:
        about = s.config()
        about["sha256"] |= {name.format(outside=s.outside): "0" * 64 for name in names}
        s.signed(about)

    return spoil


def ledger(change: Callable[[list[dict[str, Any]]], list[Any]], known: bool) -> Mutation:
    """Another ledger under the same state; signed, also in the config if `known`."""

    def spoil(s: Setting) -> None:
        rows = [json.loads(line) for line in (s.folder / LEDGER).read_text().splitlines()]
        rows = change(rows)
        (s.folder / LEDGER).write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = s.config()
        if known:
            said = [
                [
                    row[k] if k != "subject" else row.get(k)
                    for k in ("id", "prompt", "target", "subject", "operation")
                ]
                for row in rows
            ]
            about["edits"] = hashlib.sha256(
                json.dumps(said, ensure_ascii=False).encode()
            ).hexdigest()
        s.signed(about)

    return spoil


def bad_ledger(content: bytes) -> Mutation:
    """A ledger that is none; signed."""

    def spoil(s: Setting) -> None:
        (s.folder / LEDGER).write_bytes(content)
        s.signed()

    return spoil


def tensors(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Mutation:
    """One tensor is another, or gone; signed."""

    def spoil(s: Setting) -> str:
        file = s.rng.choice(sorted(s.folder.glob("*.safetensors")))
        held = load_file(file)
        if not held:
            return "nothing"
        name = s.rng.choice(sorted(held))
        changed = change(held[name])
        if changed is None:
            del held[name]
        else:
            held[name] = changed.contiguous()
        save_file(held, file)
        s.signed()
        return f"{file.name} {name}"

    return spoil


def _not_finite(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone().float()
        changed.view(-1)[: max(1, changed.numel() // 2)] = value
        return changed if changed.numel() else torch.full((1,), value)

    return change


def circle(s: Setting) -> None:
    """Leaves that speak in each other's place; signed."""
    about = s.config()
    about["state"]["later"] = [[0, [3]], [3, [0]]]
    s.signed(about)


def swapped_leaves(s: Setting) -> None:
    """Two folios in each other's place; signed."""
    one, other = s.folder / "folio-00000.safetensors", s.folder / "folio-00001.safetensors"
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    s.signed()


def base(change: Callable[[Path], None]) -> Mutation:
    """The base model that the config names is another."""

    def spoil(s: Setting) -> None:
        other = s.place / "other"
        shutil.copytree(s.base, other)
        change(other)
        about = s.config()
        about["base_model_name_or_path"] = str(other)
        s.signed(about)

    return spoil


def _zeroed(folder: Path) -> None:
    """All but what a quick fingerprint reads."""
    file = folder / "model.safetensors"
    held = load_file(file)
    for tensor in held.values():
        flat = tensor.view(-1)
        keep = torch.zeros_like(flat, dtype=torch.bool)
        keep[:: max(1, flat.numel() // 64)] = True
        flat[~keep] = 0
    save_file(held, file, {"format": "pt"})


def _permuted(folder: Path) -> None:
    """Two tokens in each other's place."""
    file = folder / "tokenizer.json"
    said = json.loads(file.read_text())
    vocabulary = said["model"]["vocab"]
    one, other = sorted(vocabulary, key=lambda word: vocabulary[word])[40:42]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(said))


def _with_code(folder: Path) -> None:
    """Code that writes a file where it is run."""
    file = folder / "config.json"
    said = json.loads(file.read_text())
    said["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Model"}
    said["model_type"] = "evil"
    file.write_text(json.dumps(said))
    (folder / "evil.py").write_text(f"open({str(folder.parents[2] / 'outside' / 'evil')!r}, 'w')\n")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def named(name: str) -> Mutation:
    """A base model of another name."""

    def spoil(s: Setting) -> None:
        about = s.config()
        about["base_model_name_or_path"] = name
        s.signed(about)

    return spoil


def mutations() -> list[tuple[str, Mutation]]:
    """All of them, by name."""
    deep = b'{"errata_version": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    own = {"placed": {}, "gone": []}
    found: list[tuple[str, Mutation]] = [
        ("marker: gone absolute", marker(lambda s: {**own, "gone": [str(s.outside / "mine.txt")]})),
        ("marker: gone upwards", marker(lambda s: {**own, "gone": ["../../../outside/mine.txt"]})),
        ("marker: gone ledger", marker(lambda s: {**own, "gone": ["edits.jsonl", CONFIG]})),
        (
            "marker: placed absolute",
            marker(lambda s: {**own, "placed": {str(s.outside / "mine.txt"): CONFIG}}),
        ),
        (
            "marker: placed upwards",
            marker(
                lambda s: {**own, "placed": {"../../../outside/edits.jsonl": "edits.jsonl.new"}}
            ),
        ),
        (
            "marker: placed from outside",
            marker(lambda s: {**own, "placed": {LEDGER: str(s.outside / "edits.jsonl")}}),
        ),
        (
            "marker: placed as before",
            marker(lambda s: {**own, "placed": [str(s.outside / "mine.txt"), "../x"]}),
        ),
        ("marker: nothing", marker(lambda s: own)),
        (
            "marker: no files",
            marker(lambda s: {**own, "placed": {LEDGER: "edits.jsonl.0123abcd.new"}}),
        ),
        ("marker: lists", marker(lambda s: [1])),
        ("marker: types", marker(lambda s: {"placed": {LEDGER: 3}, "gone": [None]})),
        ("marker: number", marker(lambda s: 7)),
        ("marker: garbage", marker(lambda s: b"\xff\x00{")),
        ("marker: deep", marker(lambda s: b"[" * 100_000)),
        ("lock: pipe", lock("pipe")),
        ("lock: link", lock("link")),
        ("lock: folder", lock("folder")),
        ("lock: left", lock("left")),
        ("folio: circle", circle),
        ("folio: replace_name", swapped_leaves),
        ("config: deep", raw(deep)),
        ("config: huge number", raw(b'{"errata_version": ' + b"9" * 5000 + b"}")),
        ("config: list", raw(b"[]")),
        ("config: not UTF-8", raw(b"\xff\xfe{}")),
        ("config: empty", raw(b"")),
        ("config: NaN", raw(b'{"errata_version": NaN}')),
        ("config: sums outside", summed(["../../../outside/mine.txt", "{outside}/mine.txt"])),
        ("config: sums of others", summed(["notes.txt", CONFIG])),
        ("config: sums of no part", summed(["folio-00099.safetensors"])),
        ("settings: unknown", unknown_setting),
        ("state: empty", empty_state),
        ("ledger: reversed", ledger(lambda rows: rows[::-1], False)),
        ("ledger: reversed, known", ledger(lambda rows: rows[::-1], True)),
        ("ledger: shortened", ledger(lambda rows: rows[:-2], False)),
        ("ledger: emptied", ledger(lambda rows: [], False)),
        ("ledger: twice the same id", ledger(lambda rows: [*rows, rows[0]], True)),
        (
            "ledger: another target",
            ledger(lambda rows: [{**rows[0], "target": "Paris"}, *rows[1:]], False),
        ),
        ("ledger: longer", ledger(lambda rows: [*rows, {**rows[0], "id": "z"}], False)),
        ("ledger: not objects", bad_ledger(b"[1]\n2\n")),
        ("ledger: deep", bad_ledger(b"[" * 100_000 + b"\n")),
        ("ledger: not UTF-8", bad_ledger(b"\xff\n")),
        ("ledger: wrong types", bad_ledger(b'{"prompt": 1, "target": [], "id": {}}\n')),
        ("tensors: NaN", tensors(_not_finite(float("nan")))),
        ("tensors: infinite", tensors(_not_finite(float("inf")))),
        ("tensors: longer", tensors(lambda t: torch.cat([t, t]) if t.dim() else t[None])),
        ("tensors: shorter", tensors(lambda t: t[:-1] if t.dim() and len(t) else None)),
        ("tensors: wider", tensors(lambda t: t[..., None])),
        ("tensors: flat", tensors(lambda t: t.flatten() if t.dim() > 1 else t[None])),
        (
            "tensors: other type",
            tensors(lambda t: t.to(torch.int64) if t.is_floating_point() else t.float()),
        ),
        ("tensors: gone", tensors(lambda t: None)),
        ("base: zeroed", base(_zeroed)),
        ("base: other tokens", base(_permuted)),
        ("base: code", base(_with_code)),
        ("base: no weights", base(_no_weights)),
        ("base: nowhere", named("/nowhere/at/all")),
        ("base: no name", named("")),
        ("base: odd name", named("../..//\u0000x")),
        ("base: long name", named("x" * 5000)),
    ]
    found += [
        (f"file: {kind}", instead(kind))
        for kind in ("pipe", "zero", "link", "loop", "folder", "sparse")
    ]
    often: list[tuple[str, Mutation]] = [
        ("byte", flip), ("truncated", truncate), ("extended", extend), ("removed", remove),
        ("replace_name", swap), ("field", field), ("setting", setting), ("state", state),
        ("state, deep", deep_state),
    ]  # fmt: skip
    return found + often * 4
