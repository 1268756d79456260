"""Judges answers by a language model on any server with OpenAI's API. It runs no edited model.

Free answers that differ from the target may still be right ("in Osk, since May"). Every figure
names its judge, and every opinion is saved beside the measurements, so none is requested twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

from errata.bench.results import Measured
from errata.errors import StorageError, UsageError
from errata.measures import PROBES, Answer

MEASURES = ("reliability", "generalization", "portability")
"""What has a right answer; locality compares with the base model and needs no opinion."""
CONTRARY = ("former", "negation")
"""Probes to which any answer is right but one."""
PROBE_KINDS = ("form", "distractor", "alias", "turns", *CONTRARY, "long", "hop")
"""Probes that are answered in words of the model's own; a letter, a yes or no, and what is to stay
the base model's need no opinion.
"""
SYSTEM = (
    "You compare an answer with the answer that is known to be right. Reply with one word: "
    "CORRECT if the answer says the same and says nothing else that contradicts it, "
    "INCORRECT otherwise."
)
SECONDS, TRIES = 60.0, 3


@dataclass(frozen=True)
class Judge:
    """A language model that judges answers.

    Attributes:
        url: up to and without "/chat/completions".
        model: its name there.
        key: sent as a bearer token, if there is one; by default $OPENAI_API_KEY.
        at_once: concurrent requests.
    """

    url: str
    model: str
    key: str | None = None
    at_once: int = 4

    def ask(self, answer: Answer) -> bool:
        """Ask whether an answer is right.

        Raises:
            UsageError: the server cannot be reached, refuses, or returns neither word.
        """
        question = (
            f"Question: {answer.prompt}\nRight answer: {right_answer(answer)}\n"
            f"Answer: {answer.after or '(nothing)'}"
        )
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": turns, "temperature": 0, "max_tokens": 8}
        key = self.key or os.environ.get("OPENAI_API_KEY")
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        where = f"{self.url.rstrip('/')}/chat/completions"
        why = ""
        for _ in range(TRIES):
            try:
                with urlopen(
                    Request(where, json.dumps(body).encode(), headers), timeout=SECONDS
                ) as reply:
                    text = str(json.load(reply)["choices"][0]["message"]["content"])
            except (OSError, ValueError, LookupError, TypeError) as error:
                why = f"{type(error).__name__}: {error}"
                continue
            word = re.search(r"\b(IN)?CORRECT\b", text.upper())
            if word:
                return not word[1]
            why = f"it said {text[:60]!r}"
        raise UsageError(
            f"the judge {self.model} at {self.url} gave no opinion, {TRIES} times: {why}."
        )


def right_answer(answer: Answer) -> str:
    """Return what the judge is told is right."""
    if answer.measure == PROBES and answer.kind in CONTRARY:
        return f"anything but {answer.wanted.removeprefix('not ')}"
    return answer.wanted


def opinions(folder: Path) -> dict[str, tuple[str, bool]]:
    """Read the opinions in a folder of measurements: answer's key -> (judge, is it right)."""
    path = folder / "judged.jsonl"
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            opinion = json.loads(line)
            found[opinion["key"]] = (opinion["judge"], opinion["right"])
        except (ValueError, LookupError):
            continue  # a line that was cut off by a kill
    return found


def key_of(answer: Answer) -> str:
    """Return a hash of what an opinion depends on: prompt, right answer, answer."""
    return hashlib.sha256(
        json.dumps([answer.prompt, answer.wanted, answer.after]).encode()
    ).hexdigest()[:16]


def judge(
    judge: Judge,
    folder: Path,
    measured: Iterable[Measured],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Judge every answer of a folder that this judge has not judged and that is not exact.

    Returns:
        The number of answers sent to the judge.
    """
    known = opinions(folder)
    waiting: dict[str, Answer] = {}
    for each in measured:
        for answer in each.answers:
            key = key_of(answer)
            if (
                (answer.measure in MEASURES or answer.kind in PROBE_KINDS)
                and not answer.right
                and known.get(key, ("", False))[0] != judge.model
            ):
                waiting[key] = answer
    try:
        with (
            (folder / "judged.jsonl").open("a", encoding="utf-8") as file,
            ThreadPoolExecutor(judge.at_once) as pool,
        ):
            opinions_of = pool.map(judge.ask, waiting.values())
            for done, (key, right) in enumerate(zip(waiting, opinions_of, strict=True), start=1):
                file.write(json.dumps({"key": key, "judge": judge.model, "right": right}) + "\n")
                file.flush()
                if progress is not None:
                    progress(done, len(waiting))
    except OSError as error:
        raise StorageError(
            f"{folder}: an opinion cannot be kept ({error.strerror or error})."
        ) from error
    return len(waiting)


def judged_share(
    each: Measured,
    known: dict[str, tuple[str, bool]],
    measure: str,
    kind: str | None = None,
) -> float | None:
    """Return the share of answers that are exact or judged right; None if an opinion is missing."""
    answers: Sequence[Answer] = [
        answer
        for answer in each.answers
        if answer.measure == measure and (kind is None or answer.kind == kind)
    ]
    found = [
        True if answer.right else known.get(key_of(answer), (None, None))[1] for answer in answers
    ]
    if not found or None in found:
        return None
    return sum(map(bool, found)) / len(found)
