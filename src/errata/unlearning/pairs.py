"""Pairs: a safe and an unsafe response to a prompt; a stereotype and its opposite.

A file of pairs is JSON lines, a JSON document or, of sentences, CSV, in this library's own form or
in that of the data sets that the papers use: SafeEdit (arXiv 2403.14472), StereoSet's sentences
with a blank (arXiv 2004.09456), CrowS-Pairs (arXiv 2010.00133).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from errata.edit import check_text
from errata.errors import EditError, PromptTooLongError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.storage.json_lines import json_type, parse_json_lines
from errata.unlearning.passages import Passage

Pair = TypeVar("Pair")
BLANK = "BLANK"
"""Stands in a context where the two sides put different words."""
_OURS = ("prompt", "safe", "unsafe")
_SAFEEDIT = ("adversarial prompt", "safe generation", "unsafe generation")
_CROWS = {"sent_more": "stereotype", "sent_less": "antistereotype"}
_SIDES = ("stereotype", "antistereotype", "unrelated")


@dataclass(frozen=True)
class ResponsePair:
    """Two responses to one prompt.

    Attributes:
        prompt: what is asked.
        safe, unsafe: the response that is wanted, and that which is not.
        rephrases: the prompt in other words; they are for measuring, and nothing is trained on
            them.
    """

    prompt: str
    safe: str
    unsafe: str
    rephrases: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResponsePair:
        """Build a pair from a JSON object, ours or SafeEdit's.

        Raises:
            EditError: a field is missing or no text, or both responses are the same.
        """
        names = _SAFEEDIT if _SAFEEDIT[0] in data else _OURS
        _check_fields(data, names)
        prompt, safe, unsafe = (data[name] for name in names)
        rephrases = data.get("rephrases", [])
        if not isinstance(rephrases, list):
            raise EditError(f"'rephrases' must be a list of texts, got {json_type(rephrases)}.")
        for text in rephrases:
            check_text("a rephrase", text)
        _check_differ(safe, unsafe, names[1:])
        return cls(prompt, safe, unsafe, tuple(rephrases))


@dataclass(frozen=True)
class SentencePair:
    """Two sentences that differ in what they say about a group of people.

    Attributes:
        stereotype, antistereotype: the sentence that agrees with the prejudice, and the other.
        unrelated: the sentence with a word that makes no sense there; empty where none is known.
        kind: of the prejudice; empty where it is not known.
    """

    stereotype: str
    antistereotype: str
    unrelated: str = ""
    kind: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SentencePair:
        """Build a pair from a JSON object, ours or StereoSet's, or from a row of CrowS-Pairs.

        With a `context`, its BLANK is filled with each side; without one, the sides are sentences.

        Raises:
            EditError: a field is missing or no text, there is no blank, or both sides are the same.
        """
        data = {_CROWS.get(name, name): value for name, value in data.items()}
        if isinstance(data.get("sentences"), list):
            data = _of_stereoset(data)
        _check_fields(data, _SIDES[:2])
        one, other, odd = data[_SIDES[0]], data[_SIDES[1]], data.get(_SIDES[2]) or ""
        if odd:
            check_text("'unrelated'", odd)
        _check_differ(one, other, _SIDES[:2])
        if (context := data.get("context")) is not None:
            check_text("'context'", context)
            if BLANK not in context:
                raise EditError(f"'context' has no {BLANK} that the two sides could fill.")
            one, other = (context.replace(BLANK, side) for side in (one, other))
            odd = odd and context.replace(BLANK, odd)
        return cls(one, other, odd, str(data.get("bias_type") or ""))


class Sentence(Passage):
    """A sentence all of whose words are scored, the first one, too."""

    def rows(self, lm: LM) -> list[Row]:
        """Return its tokens behind the one that the model begins a text with.

        Raises:
            PromptTooLongError: it does not fit the model's context.
        """
        begin = lm.tokenizer.bos_token_id
        begin = begin if begin is not None else next(iter(lm.end_ids), lm.pad_id)
        ids = lm.encode_piece(self.text)
        if lm.context_length and len(ids) >= lm.context_length:
            raise PromptTooLongError(
                f"the sentence {self.text[:40]!r} takes {len(ids) + 1} tokens; this model's "
                f"context is {lm.context_length}."
            )
        return [Row((begin, *ids), 1, len(ids))]


def sentences(texts: Sequence[str]) -> list[Passage]:
    """Return texts as sentences, each with no prompt."""
    return [Sentence("", text) for text in texts]


def read_response_pairs(path: str | Path) -> list[ResponsePair]:
    """Read a file of responses: JSON lines, or a JSON list as SafeEdit's.

    Raises:
        EditError: it cannot be read or is empty, or a pair, which is named, is not valid.
    """
    return _read(Path(path), ResponsePair.from_dict)


def read_sentence_pairs(path: str | Path) -> list[SentencePair]:
    """Read a file of sentences: JSON lines, a JSON document as StereoSet's, or CrowS-Pairs' CSV.

    Raises:
        EditError: it cannot be read or is empty, or a pair, which is named, is not valid.
    """
    return _read(Path(path), SentencePair.from_dict)


def _read(path: Path, parse: Callable[[Mapping[str, Any]], Pair]) -> list[Pair]:
    if path.suffix.lower() not in (".json", ".csv"):
        return [pair for _, pair in parse_json_lines(path, parse)]
    numbered = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_items(path)
    if not numbered:
        raise EditError(f"{path}: no pair in it.")
    pairs = []
    for place, data in numbered:
        try:
            pairs.append(parse(data))
        except EditError as error:
            raise EditError(f"{path}{place}: {error}") from error
    return pairs


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise EditError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from error


def _csv_rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    reader = csv.DictReader(_text_of(path).splitlines(keepends=True))
    try:
        return [(f":{reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise EditError(f"{path}:{reader.line_num}: not CSV ({error}).") from error


def _json_items(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        found = json.loads(_text_of(path))
    except (ValueError, RecursionError) as error:
        raise EditError(f"{path}: not JSON ({error}).") from error
    for name in ("data", "intrasentence"):
        found = found.get(name, found) if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise EditError(
            f"{path}: expected a list of objects, or StereoSet's 'data' with 'intrasentence'."
        )
    return [(f", item {number}", each) for number, each in enumerate(found, start=1)]


def _of_stereoset(data: Mapping[str, Any]) -> dict[str, Any]:
    sides: dict[str, Any] = {"bias_type": data.get("bias_type")}
    for each in data["sentences"]:
        if not isinstance(each, dict):
            raise EditError("'sentences' must be objects with 'sentence' and 'gold_label'.")
        sides[str(each.get("gold_label")).replace("-", "")] = each.get("sentence")
    return sides


def _check_fields(data: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        if name not in data:
            wanted = ", ".join(f"'{each}'" for each in names)
            has = ", ".join(f"'{each}'" for each in data) or "nothing"
            raise EditError(f"'{name}' is missing; a pair has {wanted}, this has {has}.")
        check_text(f"'{name}'", data[name])


def _check_differ(one: str, other: str, names: Sequence[str]) -> None:
    if one.split() == other.split():
        raise EditError(
            f"'{names[0]}' and '{names[1]}' are the same; one is to win over the other."
        )
