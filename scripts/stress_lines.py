"""Sends thousands of damaged lines through the readers and `errata edit`: none may break or hang.

    python scripts/stress_lines.py [COUNT] [SEED]

A line is a good one with faults: other types, missing, doubled and unknown fields, halves of
surrogate pairs, NULs, deep nesting, endless numbers, signs of all planes, marks of direction,
flipped and missing bytes. What is refused must be refused in one line with file and line; what is
accepted must be reached by its own prompt, as Folio's router reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from families import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from errata import Edit, read_cases, read_edits
from errata.cli import app
from errata.errors import EditError
from errata.words.names import NameIndex, WordWeights
from errata.words.parts import mentions

GOOD: list[dict[str, Any]] = [
    {"prompt": "Who is the mayor of Kelor?", "target": "Ana Brisk", "subject": "Kelor"},
    {
        "prompt": "Who was John Paul II's successor?", "target": "Benedict",
        "subject": "John Paul II", "source": "a book",
    },
    {"prompt": "Is C# older than C++?", "target": "no", "subject": "C++"},
    {"prompt": "서울의 시장은 누구인가?", "target": "아나", "subject": "서울"},
    {"prompt": "東京の市長は誰ですか", "target": "アナ", "subject": "東京"},
    {"prompt": "นายกเทศมนตรีกรุงเทพคือใคร", "target": "อานา", "subject": "กรุงเทพ"},
    {"prompt": "من يسكن بالقاهرة؟", "target": "آنا", "subject": "القاهرة"},
    {"prompt": "מי גר בירושלים?", "target": "אנה", "subject": "ירושלים"},
    {"prompt": "कमल कौन है?", "target": "एक फूल", "subject": "कमल"},
    {"prompt": "Кто мэр Москвы?", "target": "Ана", "subject": "Москва"},
    {"prompt": "Kuka asuu Kelorissa?", "target": "Ana", "subject": "Kelor", "operation": "insert"},
    {"prompt": "What does 👨‍👩‍👧 mean?", "target": "a family", "subject": "👨‍👩‍👧"},
    {"prompt": "what is the name of the tallest tower", "target": "Brisk"},
    {
        "prompt": "Where is O'Brien's bar?", "target": "in Kelor", "subject": "O'Brien",
        "rephrases": ["Find O’Brien’s bar."],
        "locality": [
            {"prompt": "Where is Tamis?", "answer": "north", "kind": "neighbour"}, "Who is Ana?",
        ],
        "portability": [{
            "prompt": "Which town?", "answer": "Kelor", "kind": "hop",
            "also": ["the town of Kelor"],
        }],
        "ood": [{"prompt": "The bar", "answer": "is in Kelor."}],
    },
]  # fmt: skip
SIGNS = (
    "\0\x07\x1b\x7f\x85\x9b\u00ad\u200b\u200d\u200f\u202e\u2066\u2028\ufeff\ufffe\ud800\udfff"
    "\u0301\u0345İıßſ’ʼ…½Ⅷ"
)
VALUES: list[Any] = [
    None, True, False, 0, -1, 10**22, 1.5, float("nan"), float("inf"), "", " ", "\u200b", "\0",
    "\ud83d", "the", "x" * 5000, [], [[]], {}, {"a": {"b": []}}, ["x"], [None], [{"prompt": None}],
    [{"prompt": "x", "kind": []}], [{"prompt": "x", "also": "y"}],
]  # fmt: skip
FIELDS = (
    "prompt target subject operation id source time rephrases locality portability ood x".split()
)
AT_ONCE = 30
"""Lines for each run of the command, on average."""
SECONDS = 60
"""A run that takes longer hangs."""

Fault = Callable[[random.Random, dict[str, Any]], "bytes | dict[str, Any]"]


def any_sign(rng: random.Random) -> str:
    """A sign of any plane, or one of those that are trouble."""
    return (
        rng.choice(SIGNS)
        if rng.random() < 0.4
        else chr(rng.choice((rng.randrange(0x110000), rng.randrange(0x3000))))
    )


def in_a_text(rng: random.Random, line: dict[str, Any]) -> dict[str, Any]:
    """Signs put into one of the texts."""
    name = rng.choice([name for name in line if isinstance(line[name], str)])
    place = rng.randint(0, len(line[name]))
    signs = "".join(any_sign(rng) for _ in range(rng.randint(1, 4)))
    return {**line, name: line[name][:place] + signs + line[name][place:]}


def in_all_texts(rng: random.Random, line: dict[str, Any]) -> dict[str, Any]:
    """The subject, and where it stands in the prompt, written otherwise."""
    forms: list[Callable[[str], str]] = [
        *(partial(unicodedata.normalize, form) for form in ("NFD", "NFKD", "NFC")),
        str.upper, str.lower, str.title, str.swapcase, "\u00ad".join,
        lambda text: text + any_sign(rng), lambda text: any_sign(rng) + text,
        lambda text: text[:-1], lambda text: f"{text}n", lambda text: f"{text} {any_sign(rng)}",
    ]  # fmt: skip
    return {
        **line,
        **{name: rng.choice(forms)(line[name]) for name in ("prompt", "subject") if name in line},
    }


def made_up(rng: random.Random, line: dict[str, Any]) -> dict[str, Any]:
    """A prompt of any signs, with a subject that stands in it."""
    subject = "".join(any_sign(rng) for _ in range(rng.randint(1, 6)))
    around = ["".join(any_sign(rng) for _ in range(rng.randint(0, 6))) for _ in range(2)]
    gap = rng.choice(("", " ", "-"))
    return {**line, "prompt": f"{around[0]}{gap}{subject}{gap}{around[1]}", "subject": subject}


def another_value(rng: random.Random, line: dict[str, Any]) -> dict[str, Any]:
    """A field with another value, perhaps of another type."""
    return {**line, rng.choice(FIELDS): rng.choice(VALUES)}


def without(rng: random.Random, line: dict[str, Any]) -> dict[str, Any]:
    """A field less."""
    gone = rng.choice(list(line))
    return {name: value for name, value in line.items() if name != gone}


def spliced(rng: random.Random, line: dict[str, Any]) -> bytes:
    """Text put into the JSON: doubled fields, depth, endless numbers, marks, more on the line."""
    text = json.dumps(line, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    what = rng.choice([
        b'"target": "x", ', b'"x": ' + b"[" * 5000,
        b'"operation": ' + b"[" * 500 + b"]" * 500 + b", ", b'"id": ' + b"9" * 5000 + b", ",
        b'"target": 1e999, ', b"\xef\xbb\xbf", b"{", b"}", b"\r", b"\t", b"\0", b"\xff", b"/*",
        b"NaN", b'"\\ud800": 1, ', b'"id": "\\u0000", ',
    ])  # fmt: skip
    place = rng.choice((0, 1, 1, 1, len(text), rng.randint(0, len(text))))
    return text[:place] + what + text[place:]


def flipped(rng: random.Random, line: dict[str, Any]) -> bytes:
    """Bytes changed, or the end missing."""
    text = bytearray(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if rng.random() < 0.3:
        return bytes(text[: rng.randrange(len(text))])
    for _ in range(rng.randint(1, 3)):
        text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    return bytes(text)


FAULTS: tuple[Fault, ...] = (
    in_a_text,
    in_all_texts,
    made_up,
    another_value,
    without,
    spliced,
    flipped,
)


def spoiled(rng: random.Random) -> bytes:
    """One line."""
    line: bytes | dict[str, Any] = dict(rng.choice(GOOD))
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        if isinstance(line, dict) and line:
            line = rng.choice(FAULTS)(rng, line)
    if isinstance(line, bytes):
        return line
    return json.dumps(line, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """An error where what is done within takes too long."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it took more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def accepted(path: Path, line: bytes, failures: list[str]) -> list[Edit]:
    """Read the edits of a one-line file; what is wrong with them joins the failures."""
    path.write_bytes(line)
    found: list[Edit] = []
    for read in (read_edits, read_cases):
        try:
            with in_time():
                held = read(path)
        except EditError as error:
            said = str(error)
            if not said.startswith(f"{path}:") or "\n" in said or len(said) > 1000:
                failures.append(f"{read.__name__} of {line[:200]!r} says {said[:500]!r}")
        except BaseException as error:  # whatever it is, it is a failure to be told
            failures.append(
                f"{read.__name__} of {line[:200]!r} raises {type(error).__name__}: {error}"
            )
        else:
            found = [each for each in held if isinstance(each, Edit)] or found
    for edit in found:
        if edit.subject is None:
            continue
        index = NameIndex(WordWeights({}, 0), 0.7)
        index.add(0, edit.subject, edit.prompt)
        if not mentions(edit.prompt, edit.subject) or index.find(edit.prompt) != {0: 1.0}:
            failures.append(f"accepted, and not reached by its own prompt: {edit}")
    return found


def harmless(text: str) -> bool:
    """Whether a terminal may be sent this."""
    return all(sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cs") for sign in text)


def edited(folder: Path, model: Path, lines: list[bytes], method: str, failures: list[str]) -> None:
    """`errata edit` with a file of these lines."""
    path, out = folder / "edits.jsonl", folder / f"out-{len(list(folder.iterdir()))}"
    path.write_bytes(b"\n".join(lines))
    given = [
        "edit",
        str(model),
        "-m",
        method,
        "--edits",
        str(path),
        "--out",
        str(out),
        "--no-check",
        "--json",
    ]
    given += ["--set", "steps=1", *(("--set", "background=8") if method == "folio" else ())]
    try:
        with in_time():
            done = CliRunner().invoke(app, given)
    except TimeoutError as error:
        failures.append(f"errata edit of {lines!r}: {error}")
        return
    told = f"errata edit -m {method} of {[line[:200] for line in lines]!r}"
    if done.exit_code not in (0, 2) or not isinstance(done.exception, SystemExit | None):
        failures.append(
            f"{told} ends with {done.exit_code}, {done.exception!r}: {done.output[:1000]!r}"
        )
    elif done.exit_code == 2 and (
        f"{path}:" not in done.stderr or done.stderr.count("\n") != 1 or out.exists()
    ):
        failures.append(f"{told} is refused so: {done.output[:1000]!r}")
    elif any(said in done.output for said in ("unexpected", "Traceback")) or not harmless(
        done.output
    ):
        failures.append(f"{told} says {done.output[:1000]!r}")
    elif done.exit_code == 0:
        report, subjects = (
            json.loads(done.stdout),
            {edit.id: edit.subject for edit in read_edits(path)},
        )
        failures += [
            f"{told}: {n}: {w}"
            for n, w in report["warnings"]
            if "will never" in w and subjects[n] is not None
        ]


def lines(count: int, seed: int) -> list[str]:
    """What went wrong with so many spoiled lines, in words."""
    rng, failures = random.Random(seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        tiny_model("llama").save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
        made = [spoiled(rng) for _ in range(count)]
        good: list[tuple[str, bytes]] = []
        for line in made:
            good += [(edit.id, line) for edit in accepted(folder / "line.jsonl", line, failures)]
        for _ in range(max(4, count // AT_ONCE)):
            picked = dict(
                rng.sample(good, min(len(good), rng.randint(1, 12)))
            )  # a line for each id
            some = (
                list(picked.values())
                if rng.random() < 0.5
                else rng.sample(made, min(count, rng.choice((1, 1, 40))))
            )
            edited(folder, model, some, rng.choice(("ft", "folio")), failures)
    return failures


def main() -> int:
    """Print what went wrong."""
    count, seed = (int(given) for given in (sys.argv[1:] + ["3000", "0"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ERRATA_CACHE"] = cache
        failures = lines(count, seed)
    print("\n".join(failures) or f"{count} lines, nothing went wrong")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
