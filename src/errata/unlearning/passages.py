"""`Passage`: what is forgotten or kept: the answer to a question, or a text.

A file of passages is JSON lines: `question` and `answer`, as in TOFU; `prompt` and `target`, as an
edit, whose other fields do not matter; or `text`, a document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.edit import check_text
from errata.errors import EditError, PromptTooLongError
from errata.lm import LM
from errata.lm.encoding import Row
from errata.storage.json_lines import parse_json_lines

_PAIRS = (("question", "answer"), ("prompt", "target"))


@dataclass(frozen=True)
class Passage:
    """What is forgotten or kept.

    Attributes:
        prompt: the question; empty where the text is a document.
        text: the answer, or the document.
        paraphrase: the answer in other words; empty where none is known.
        wrong: answers of the same form that are wrong.
    """

    prompt: str
    text: str
    paraphrase: str = ""
    wrong: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Passage:
        """Build a passage from a JSON object.

        Raises:
            EditError: it is none of the kinds, or a text is empty or no text.
        """
        for asked, answered in _PAIRS:
            if asked in data and answered in data:
                check_text(f"'{asked}'", data[asked])
                check_text(f"'{answered}'", data[answered])
                paraphrase = data.get("paraphrased_answer", "")
                wrong = data.get("perturbed_answer", [])
                wrong = [wrong] if isinstance(wrong, str) else wrong
                for name, texts in (("paraphrased", [paraphrase]), ("perturbed", wrong)):
                    if not all(isinstance(text, str) for text in texts):
                        raise EditError(f"'{name}_answer' must be text.")
                return cls(data[asked], data[answered], paraphrase, tuple(wrong))
        if "text" in data:
            check_text("'text'", data["text"])
            return cls("", data["text"])
        raise EditError(
            "a passage has 'question' and 'answer', 'prompt' and 'target', or 'text'; this has "
            f"{', '.join(sorted(data)) or 'nothing'}."
        )

    def rows(self, lm: LM) -> list[Row]:
        """Return its tokens: of an answer, with how the model ends it; a document in parts that fit
        the model's context.

        Raises:
            PromptTooLongError: the question and its answer do not fit the model's context.
        """
        if self.prompt:
            return [lm.encode(self.prompt, self.text, lm.ending_of(self.prompt, self.text))]
        ids, most = tuple(lm.encode_text(self.text)), lm.context_length or LONGEST
        parts = [ids[start : start + most] for start in range(0, len(ids), most)]
        rows = [Row(part, 1, len(part) - 1) for part in parts if len(part) > 1]
        if not rows:
            raise PromptTooLongError(f"the text {self.text[:40]!r} is one token: it tells nothing.")
        return rows


LONGEST = 1024
"""Tokens of a part of a document where the model limits nothing."""


def read_passages(path: str | Path) -> list[Passage]:
    """Read a file of passages.

    Raises:
        EditError: it cannot be read or is empty, or a line, which is named, is no passage.
    """
    return [passage for _, passage in parse_json_lines(path, Passage.from_dict)]


def check_apart(forget: Sequence[Passage], retain: Sequence[Passage]) -> None:
    """Make sure that nothing is to be forgotten and kept.

    Raises:
        EditError: something is; it is named.
    """
    kept = {(each.prompt, each.text) for each in retain}
    both = [each for each in forget if (each.prompt, each.text) in kept]
    if both:
        shown = both[0].prompt or both[0].text
        raise EditError(
            f"{len(both)} passages are to be forgotten and kept, like {shown[:60]!r}; take them "
            "out of one of the two."
        )


def digest(passages: Sequence[Passage]) -> str:
    """Return a SHA-256 of passages, in hex."""
    text = json.dumps([[each.prompt, each.text] for each in passages], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
