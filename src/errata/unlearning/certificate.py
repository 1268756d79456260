"""A certificate of forgetting: what was asked for and done, and what was measured of it.

It says what was measured, beside its reference, and what was not; it concludes nothing else. What
was forgotten stands in it by its hash alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import torch

import errata
from errata.errors import ArtifactError
from errata.storage.identity import file_digest
from errata.unlearning.passages import Passage, digest
from errata.unlearning.report import MEANINGS

LIMITS = (
    "What is said here holds of the model whose files have these hashes, and of no copy of an "
    "earlier one.",
    "The answers are the model's own, word by word the likeliest; other ways to ask, other "
    "wordings and other languages may bring up what these did not.",
    "No test of a finished model can prove that nothing is left of what it was trained on.",
)
"""What no measure here can say."""
ALIKE = 0.05
"""The p-value from which two models are not told apart."""


def certificate(
    folder: Path,
    forget: Sequence[Passage],
    retain: Sequence[Passage],
    found: Mapping[str, Any],
    edits: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return a certificate, ready for JSON.

    Args:
        folder: of the model, or of edits.
        forget, retain: what was to be forgotten and to be kept.
        found: what was measured, see `forgetting`.
        edits: of a folder of edits, those that erase.

    Raises:
        ArtifactError: the folder cannot be read.
    """
    record = folder / "unlearning.json"
    try:
        files = {
            str(file.relative_to(folder)): file_digest(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not file.is_symlink()
        }
        done = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: it cannot be read ({error}).") from error
    said = list(_statements(len(forget), len(retain), found))
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": f"errata {errata.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "model": {"files": files, "sha256": _of_all(files)},
        "asked": {
            "forget": {"passages": len(forget), "sha256": digest(forget)},
            "retain": {"passages": len(retain), "sha256": digest(retain)},
        },
        "done": done,
        "edits": [{"id": edit["id"], "time": edit.get("time")} for edit in edits],
        "statements": said,
        "not_measured": list(_not_measured(forget, done, found)),
        "limits": list(LIMITS),
        "measured": dict(found),
    }


def _of_all(files: Mapping[str, str]) -> str:
    """Return one hash of files, by their names and hashes."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def share(count: float, total: int) -> str:
    """Return a share in words, with Wilson's 95 % interval."""
    if not total:
        return "none asked"
    z, p = 1.959964, count / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    reach = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = max(0.0, middle - reach), min(1.0, middle + reach)
    return f"{round(count)} of {total} (95 % interval {low:.1%} to {high:.1%})"


def _statements(gone: int, kept: int, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was measured, each with its reference where there is one."""
    never: Mapping[str, Any] = found.get("retrained", {})

    def beside(*path: Any) -> str:
        value: Any = never
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None:
            return ""
        return f"; a model trained without it: {value:.3f}"

    forget, retain = found["forget"], found["retain"]
    yield (
        "Asked freely, the model's answer held what was to be forgotten in "
        f"{share(forget['said'] * gone, gone)}{beside('forget', 'said')}."
    )
    yield (
        f"The answers shared {forget['rouge']:.1%} of its words in order (ROUGE-L recall)"
        f"{beside('forget', 'rouge')}."
    )
    yield (
        f"Given the beginning, the model would go on with the last {forget['extraction']:.1%} of "
        f"it by itself{beside('forget', 'extraction')}."
    )
    yield (
        "Asked freely, the model's answer held what was to be kept in "
        f"{share(retain['said'] * kept, kept)}{beside('retain', 'said')}."
    )
    if (quality := found.get("forget_quality")) is not None:
        told = "is not told apart from" if quality >= ALIKE else "is told apart from"
        yield (
            f"By the likelihoods of right and wrong answers the model {told} one trained without "
            f"it (two-sample K-S test, p = {quality:.2g})."
        )
    for name, value in found.get("attacks", {}).items():
        yield (
            f"An attacker who goes by {name.replace('_', '-')} tells what was trained on from what "
            f"never was with an AUC of {value:.3f} (chance: .5){beside('attacks', name)}."
        )
    for bits, value in found.get("quantised", {}).items():
        yield (
            f"With weights rounded to {bits} bits the answer held it in "
            f"{share(value * gone, gone)}{beside('quantised', bits)}."
        )
    if relearned := found.get("relearned"):
        last = max(relearned)
        yield (
            f"After {last} steps of training on every second passage the model said "
            f"{relearned[last]:.1%} of the others, before {relearned[min(relearned)]:.1%}"
            f"{beside('relearned', last)}."
        )


def _not_measured(
    forget: Sequence[Passage], done: Mapping[str, Any] | None, found: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what was not measured, though it could have been."""
    if "retrained" not in found:
        yield (
            "No model trained without what was to be forgotten was at hand: how such a model would "
            "answer is not known, so that no figure says what forgetting should come to."
        )
    elif found.get("forget_quality") is None:
        yield "There are no wrong answers beside the right ones: the likelihoods were not compared."
    if "attacks" not in found:
        yield "No text that the model was never trained on was given: no attack was tried."
    if "quantised" not in found:
        yield "Whether rounded weights or further training bring it back was not tried."
    if done is None:
        yield "Nothing beside the model says how it was made to forget, so that is not checked."
    elif done.get("forget", {}).get("sha256") != digest(forget):
        yield (
            "The model was made to forget other passages than those asked here (the hashes differ)."
        )


def page(made: Mapping[str, Any]) -> str:
    """Return a certificate as a page to read, which needs nothing else."""

    def items(texts: Sequence[str]) -> str:
        return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"

    def rows(pairs: Sequence[tuple[str, str]]) -> str:
        cells = "".join(
            f"<tr><th scope=row>{escape(name)}</th><td>{escape(text)}</td></tr>"
            for name, text in pairs
        )
        return f"<table>{cells}</table>"

    asked, done = made["asked"], made["done"]
    how = [(f"edit {edit['id']}", f"erases, since {edit['time']}") for edit in made["edits"]]
    if done:
        how += [
            ("how", f"{done['objective']} ({done['paper']}), {done['steps']} steps"),
            ("when", done["time"]),
            ("base model, SHA-256", str(done["base"])),
            ("settings", json.dumps(done["settings"])),
        ]
    measured = [
        (
            name,
            f"{_figure(made['measured']['forget'][name])} forgotten, "
            f"{_figure(made['measured']['retain'][name])} kept: {meaning}",
        )
        for name, meaning in MEANINGS.items()
    ]
    parts = [
        "<h1>Certificate of forgetting</h1>",
        f"<p>Made {escape(made['time'])} by {escape(made['made_by'])}.</p>",
        "<h2>What was asked for</h2>",
        rows(
            [
                ("to forget", f"{asked['forget']['passages']} passages"),
                ("their SHA-256", asked["forget"]["sha256"]),
                ("to keep", f"{asked['retain']['passages']} passages"),
                ("their SHA-256 ", asked["retain"]["sha256"]),
            ]
        ),
        "<h2>What was done</h2>",
        rows(how) if how else "<p>Not recorded.</p>",
        "<h2>What was measured</h2>",
        items(made["statements"]),
        "<h2>What was not measured</h2>",
        items(made["not_measured"]) if made["not_measured"] else "<p>All was.</p>",
        "<h2>What no measure here can say</h2>",
        items(made["limits"]),
        "<h2>All figures</h2>",
        rows(measured),
        "<h2>The model</h2>",
        rows([("all files, SHA-256", made["model"]["sha256"]), *made["model"]["files"].items()]),
    ]
    return _PAGE.format(body="\n".join(parts))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Certificate of forgetting</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 48rem; margin: 2rem auto;
  padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .5rem;
  border-bottom: 1px solid #ccc; vertical-align: top; overflow-wrap: anywhere; }}
th {{ font-weight: 600; width: 12rem; }}
@media print {{ body {{ margin: 0; }} }}
</style></head>
<body>
{body}
</body></html>
"""
