"""The last token of a prompt's subject, and the keys and hidden states there.

Locate-then-edit methods read and write at one token: the last one of the subject, where facts are
looked up according to ROME (arXiv 2202.05262); some models look them up at the prompt's last token.
Of several mentions the last one counts, since only there the model has read the whole prompt about
the subject; an exact mention is preferred to an inflected one. `words/parts.py` decides what
mentions a subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from errata.errors import EditError
from errata.lm.encoding import Batch, Row, in_batches
from errata.lm.hooks import capture_input, capture_output, stop_after
from errata.lm.lm import LM
from errata.words.parts import mentions

BATCH = 64

Place = Literal["subject_last", "last"]
"""The token a fact is looked up at: the subject's last, or the prompt's (ROME's `fact_token`)."""
PLACES: tuple[str, ...] = get_args(Place)


@dataclass(frozen=True)
class Mention:
    """A row that mentions a subject, and the index of the token its fact is looked up at."""

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
    """Encode a prompt, with its target if there is one, as a row that mentions the subject.

    Args:
        lm: the model.
        prompt: the question.
        subject: who or what it is about.
        target: its answer; None: the row is the prompt.
        ending: as `LM.encode` takes it.
        at: the token to look at.

    Raises:
        PromptTooLongError: it does not fit the model's context.
        EditError: the subject is not in the prompt, or the tokenizer leaves no trace of it.
    """
    if target is None:
        ids = tuple(lm.encode_prompt(prompt))
        row = Row(ids, len(ids))
    else:
        row = lm.encode(prompt, target, ending)
    last = row.prompt_length - 1
    return Mention(row, last if at == "last" else subject_token(lm, prompt, subject))


def subject_token(lm: LM, prompt: str, subject: str) -> int:
    """Return the index of the subject's last token among `lm.encode_prompt(prompt)`.

    Raises:
        EditError: the subject is not in the prompt, or the tokenizer leaves no trace of it.
    """
    text = lm.apply_chat_template(prompt)
    end = _subject_end(text, prompt, subject)
    ids = lm.encode_prompt(prompt)
    index = _by_offsets(lm, text, ids, end)
    index = _by_decoding(lm, text, ids, end) if index is None else index
    if index is None:
        raise EditError(
            f"subject {subject!r} cannot be found among the tokens of {prompt!r}; "
            "this tokenizer rewrites it."
        )
    return index


def columns_of(batch: Batch, mentions: Sequence[Mention]) -> Tensor:
    """Return the column (batch,) of each mention's token in the padded batch of their rows."""
    starts = batch.attention_mask.argmax(-1)
    return starts + torch.tensor([each.token for each in mentions], device=starts.device)


def keys_at(lm: LM, layer: int, mentions: Sequence[Mention]) -> Tensor:
    """Return the inputs of the value matrix of `layer` at the mentions' tokens: (n, d_in), fp32."""
    return _states(lm, lm.architecture.value_module(lm.model, layer), mentions, inputs=True)


def states_at(lm: LM, layer: int, mentions: Sequence[Mention]) -> Tensor:
    """Return the outputs of the block `layer` at the mentions' tokens: (n, hidden), fp32."""
    return _states(lm, lm.architecture.block(lm.model, layer), mentions, inputs=False)


@torch.no_grad()
def _states(lm: LM, module: nn.Module, mentions: Sequence[Mention], inputs: bool) -> Tensor:
    """Return a module's inputs or outputs at the mentions' tokens, in fp32.

    Rows are cut after the token, since nothing later changes what a causal model computes there.
    """

    def states(part: list[Row]) -> list[Tensor]:
        batch = lm.batch(part, side="left")
        capture = capture_input if inputs else capture_output
        with capture(module) as captured, stop_after(module):
            lm.run(batch, use_cache=False)
        return list(captured[0].reshape(*batch.input_ids.shape, -1)[:, -1].float())

    rows = [Row(each.row.ids[: each.token + 1], each.token + 1) for each in mentions]
    return torch.stack(in_batches(rows, states, BATCH, size=lambda row: len(row.ids)))


def _subject_end(text: str, prompt: str, subject: str) -> int:
    """Index after the subject's last character in the text the model is given."""
    places = mentions(prompt, subject)
    start = text.rfind(prompt)
    if start < 0:  # a chat template may trim the prompt
        start = text.rfind(prompt.strip()) - (len(prompt) - len(prompt.lstrip()))
    if not places or start < 0:
        raise EditError(f"subject {subject!r} does not stand in the prompt {prompt!r}.")
    return start + places[-1][1]


def _by_offsets(lm: LM, text: str, ids: list[int], end: int) -> int | None:
    """The last token that covers the character before `end`, by the tokenizer's offsets."""
    if not lm.tokenizer.is_fast:
        return None
    encoded = lm.tokenizer(text, add_special_tokens=not lm.chat, return_offsets_mapping=True)
    if list(encoded["input_ids"])[: len(ids)] != ids:
        return None
    offsets = encoded["offset_mapping"][: len(ids)]
    covering = [i for i, (start, stop) in enumerate(offsets) if start < end <= stop]
    return covering[-1] if covering else None


def _by_decoding(lm: LM, text: str, ids: list[int], end: int) -> int | None:
    """The first token up to which the tokens decode to all text before `end`, but white space."""
    wanted = "".join(text[:end].split())
    for count in range(1, len(ids) + 1):
        if wanted in "".join(str(lm.tokenizer.decode(ids[:count])).split()):
            return count - 1
    return None
