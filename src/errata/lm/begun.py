"""`BegunRows`: prompts read once up to their last token, and continued as often as one likes.

What reads or changes a model from a prompt's last token on leaves everything before it as the base
model has it: a step of training need not run it again, and no gradient flows through it. In a chat
model most of a row is its prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from errata.lm.body_reader import BodyReader
from errata.lm.encoding import Row, prompt_tokens
from errata.lm.lm import LM


class BegunRows:
    """Rows whose prompts the base model has read, but for their last tokens.

    Args:
        lm: the base model, without patches.
        rows: prompts with targets and endings.

    Attributes:
        cache: the key-value cache of what is read; it stays as it is.
        ids: (rows, columns), the tokens, those in the cache before the rest.
        mask: (rows, columns) bool, False at padding.
        prompt: (rows, columns) bool, True at the prompts.
        read: the columns in the cache.
        rows: (n,), the rows of the tokens of targets and endings.
        labels: (n,), these tokens.
    """

    def __init__(self, lm: LM, rows: Sequence[Row]) -> None:
        self._lm = lm
        last = [row.prompt_length - 1 for row in rows]
        begun = BodyReader(lm).prefill([row.ids[:end] for row, end in zip(rows, last, strict=True)])
        rest = lm.batch(
            [Row(row.ids[end:], 1, row.target_length) for row, end in zip(rows, last, strict=True)],
            side="right",
        )
        self.cache, self.read = begun.cache, begun.ids.shape[1]
        self.ids = torch.cat([begun.ids, rest.input_ids], dim=1)
        self.mask = torch.cat([begun.mask, rest.attention_mask], dim=1).bool()
        self.prompt = torch.cat([begun.mask.bool(), rest.prompt_mask], dim=1)
        answer = rest.target_mask | rest.ending_mask
        self.rows, self._columns, self.labels = rest.label_positions(answer)

    def logits(self) -> Tensor:
        """Return the logits (n, vocabulary), fp32, that predict `labels`, patches and all."""
        lm, options = self._lm, {self._lm.cache_name: copy.deepcopy(self.cache)}
        mask = self.mask.long()
        if lm.takes_position_ids:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, self.read :]
        with prompt_tokens(self.prompt, self.ids):
            output = lm.model(
                input_ids=self.ids[:, self.read :], attention_mask=mask, use_cache=True, **options
            )
        logits: Tensor = output.logits[self.rows, self._columns]
        return logits.float()
