"""Where in the tokens of a conversation its last question stands: what a router reads of it, and
where a fact is told.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from torch import Tensor

from errata.lm import LM
from errata.lm.chat import Conversation


def question_mask(lm: LM, ids: Tensor, mask: Tensor) -> Tensor:
    """Which of a prompt's tokens a router reads that weighs them all: those that asking the last
    question alone has too.

    Left out are the turns before the user's last one, and what a caller says in the place of the
    template's own beginning; a plain prompt is read whole.

    Args:
        lm: the model.
        ids: (batch, width).
        mask: (batch, width) bool, the prompt.
    """
    if lm.template is None:
        return mask
    kept = mask.clone()
    for row, (own, seen) in enumerate(zip(ids, mask.to(ids.device), strict=True)):
        tokens = own[seen].tolist()
        keep, begin = lm.template.turn_starts(str(lm.tokenizer.decode(tokens)))
        if begin > keep:
            columns = seen.nonzero()[:, 0]
            kept[row, columns[_token_at(lm, tokens, keep) : _token_at(lm, tokens, begin)]] = False
    return kept


def told(lm: LM, ids: Sequence[int], asked: Conversation, context: str) -> tuple[int, ...]:
    """The ids, which ask this, with a context told before the user's last question.

    A plain prompt is encoded anew with it, and so is a conversation; where the tokenizer does not
    give back what was decoded, the context's tokens are put before the question's own, or behind
    the first special token.
    """
    if asked.prompt is not None:
        return tuple(lm.encode_text(lm.apply_chat_template(context + asked.prompt)))
    if asked.front and lm.encode_text(asked.front + asked.questions[0] + asked.back) == list(ids):
        return tuple(lm.encode_text(asked.front + context + asked.questions[0] + asked.back))
    if asked.front:
        place = _token_at(lm, ids, len(asked.front))
    else:
        place = int(bool(ids) and ids[0] in lm.tokenizer.all_special_ids)
    return (
        *ids[:place],
        *lm.tokenizer(context, add_special_tokens=False)["input_ids"],
        *ids[place:],
    )


def _token_at(lm: LM, ids: Sequence[int], place: int) -> int:
    """The token that covers a character's place in the decoded text."""
    return bisect.bisect_right(
        range(1, len(ids) + 1), place, key=lambda n: len(str(lm.tokenizer.decode(list(ids[:n]))))
    )
