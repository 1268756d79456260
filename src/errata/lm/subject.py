"""Where a prompt's subject ends, in tokens, and what flows through the model there.

Locate-then-edit methods read and write at one place: the last token of the subject, where (ROME,
arXiv 2202.05262, finds) a fact is looked up; some models look it up at the prompt's last token. A
subject that stands in the prompt more than once is taken where it stands last, since only there
everything else that is said of it has been read; where it stands as it is written goes before where
something is joined to it. What mentions a subject is decided in `parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from errata.errors import EditError
from errata.lm.encoding import Batch, Row, in_batches
from errata.lm.hooks import capture_input, capture_output
from errata.lm.lm import LM
from errata.words.parts import mentions

AT_ONCE = 64


Place = Literal["subject_last", "last"]
"""Which token a fact is looked up at: the subject's last, or the prompt's (ROME's `fact_token`)."""
PLACES: tuple[str, ...] = get_args(Place)


@dataclass(frozen=True)
class Mention:
    """A row that mentions a subject, and the index of the token that its fact is looked up at."""

    row: Row
    token: int


def mention(
    lm: LM,
    prompt: str,
    subject: str,
    target: str | None = None,
    ending: str | None = None,
    at: Place = "subject_last",
) -> Mention:
    """The prompt, with its target if there is one, as a row that mentions the subject.

    Raises:
        PromptTooLongError: it does not fit the model's context.
        EditError: the subject is not in the prompt, or the tokenizer leaves no trace of it.
    """
    if target is None:
        ids = tuple(lm.encode_prompt(prompt))
        row = Row(ids, len(ids))
    else:
        row = lm.encode(prompt, target, ending)
    return Mention(row, row.prompt_length - 1 if at == "last" else last_token(lm, prompt, subject))


def last_token(lm: LM, prompt: str, subject: str) -> int:
    """Index of the subject's last token among `lm.encode_prompt(prompt)`.

    Raises:
        EditError: the subject is not in the prompt, or the tokenizer leaves no trace of it.
    """
    asked = lm.asked(prompt)
    end = _end_of(asked, prompt, subject)
    ids = lm.encode_prompt(prompt)
    found = _by_offsets(lm, asked, ids, end)
    found = _by_decoding(lm, asked, ids, end) if found is None else found
    if found is None:
        raise EditError(
            f"subject {subject!r} cannot be found among the tokens of {prompt!r}; this tokenizer rewrites it."
        )
    return found


def columns_of(batch: Batch, mentions: Sequence[Mention]) -> Tensor:
    """The column (batch,) of each mention's token in the padded batch of their rows."""
    starts = batch.attention_mask.argmax(-1)
    return starts + torch.tensor([each.token for each in mentions], device=starts.device)


def keys_at(lm: LM, layer: int, mentions: Sequence[Mention]) -> Tensor:
    """Inputs of the value matrix of `layer` at the mentions' tokens, (n, d_in) in fp32."""
    return _flow_at(lm, lm.architecture.value_module(lm.model, layer), mentions, inputs=True)


def states_at(lm: LM, layer: int, mentions: Sequence[Mention]) -> Tensor:
    """Outputs of the block `layer` at the mentions' tokens, (n, hidden) in fp32."""
    return _flow_at(lm, lm.architecture.block(lm.model, layer), mentions, inputs=False)


@torch.no_grad()
def _flow_at(lm: LM, module: nn.Module, mentions: Sequence[Mention], inputs: bool) -> Tensor:
    """Nothing behind a token can change what flows there, so rows are cut behind it."""

    def flowing(part: list[Row]) -> list[Tensor]:
        batch = lm.batch(part, side="left")
        with (capture_input if inputs else capture_output)(module) as seen:
            lm.run(batch, use_cache=False)
        return list(seen[0].reshape(*batch.input_ids.shape, -1)[:, -1].float())

    rows = [Row(each.row.ids[: each.token + 1], each.token + 1) for each in mentions]
    return torch.stack(in_batches(rows, flowing, AT_ONCE, size=lambda row: len(row.ids)))


def _end_of(asked: str, prompt: str, subject: str) -> int:
    """Index behind the subject's last character in the text that is asked."""
    places = mentions(prompt, subject)
    start = asked.rfind(prompt)
    if start < 0:  # a chat template may trim what it is given
        start = asked.rfind(prompt.strip()) - (len(prompt) - len(prompt.lstrip()))
    if not places or start < 0:
        raise EditError(f"subject {subject!r} does not stand in the prompt {prompt!r}.")
    return start + places[-1][1]


def _by_offsets(lm: LM, asked: str, ids: list[int], end: int) -> int | None:
    """The last token that covers the character before `end`, by the tokenizer's own account."""
    if not lm.tokenizer.is_fast:
        return None
    read = lm.tokenizer(asked, add_special_tokens=not lm.chat, return_offsets_mapping=True)
    if list(read["input_ids"])[: len(ids)] != ids:
        return None
    covering = [
        i
        for i, (start, stop) in enumerate(read["offset_mapping"][: len(ids)])
        if start < end <= stop
    ]
    return covering[-1] if covering else None


def _by_decoding(lm: LM, asked: str, ids: list[int], end: int) -> int | None:
    """The first token up to which the tokens say all of the text before `end`, white space aside."""
    wanted = "".join(asked[:end].split())
    for count in range(1, len(ids) + 1):
        if wanted in "".join(str(lm.tokenizer.decode(ids[:count])).split()):
            return count - 1
    return None
