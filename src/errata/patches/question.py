"""Where the user's last question is among the tokens of a conversation.

Routers read it (`question_mask`), and contexts are put in front of it (`insert_context`).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from torch import Tensor

from errata.lm import LM
from errata.lm.chat import Conversation


def question_mask(lm: LM, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the prompt's tokens that the last question would also have if it were asked alone.

    It leaves out the turns before the user's last one, and a system prompt in the place of the
    chat template's own; of a plain prompt it leaves out nothing.

    Args:
        lm: the model.
        ids: (batch, width), token ids.
        mask: (batch, width) bool, True at the prompt.

    Returns:
        (batch, width) bool.
    """
    if lm.template is None:
        return mask
    kept = mask.clone()
    for row, (row_ids, row_mask) in enumerate(zip(ids, mask.to(ids.device), strict=True)):
        tokens = row_ids[row_mask].tolist()
        start, end = lm.template.turn_starts(str(lm.tokenizer.decode(tokens)))
        if end > start:
            columns = row_mask.nonzero()[:, 0]
            kept[row, columns[_token_at(lm, tokens, start) : _token_at(lm, tokens, end)]] = False
    return kept


def insert_context(
    lm: LM, ids: Sequence[int], conversation: Conversation, context: str
) -> tuple[int, ...]:
    """Put a context in front of the last question of a conversation.

    The text with the context is encoded anew. Where the tokenizer does not give back the ids of the
    text without it, the context's tokens are put among the ids instead: in front of the question's
    own, or behind a first special token.

    Args:
        ids: the conversation's token ids.
        conversation: what `LM.conversation` reads in them.

    Returns:
        The token ids with the context.
    """
    front, question, back = conversation.front, conversation.questions[0], conversation.back
    if conversation.prompt is not None:
        return tuple(lm.encode_text(lm.apply_chat_template(context + conversation.prompt)))
    if front and lm.encode_text(front + question + back) == list(ids):
        return tuple(lm.encode_text(front + context + question + back))
    if front:
        place = _token_at(lm, ids, len(front))
    else:
        place = int(bool(ids) and ids[0] in lm.tokenizer.all_special_ids)
    return (
        *ids[:place],
        *lm.tokenizer(context, add_special_tokens=False)["input_ids"],
        *ids[place:],
    )


def _token_at(lm: LM, ids: Sequence[int], position: int) -> int:
    """Return the index of the token that covers a character's position in the decoded text."""

    def length(count: int) -> int:
        return len(str(lm.tokenizer.decode(list(ids[:count]))))

    return bisect.bisect_right(range(1, len(ids) + 1), position, key=length)
