"""How the tokens of one answer are chosen, each row of a batch by settings of its own.

`generate` of transformers samples all rows of a batch alike. Here a logits processor chooses each
row's token itself and leaves no other one; `generate` then takes it, greedily.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessor

MOST_LOGPROBS = 20
"""Alternatives whose log-probabilities may be asked for, per token."""


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer; the defaults are greedy.

    Attributes:
        max_tokens: tokens after which it is cut.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_p: the likeliest tokens that have so much probability together are drawn from.
        seed: of what is drawn; None: another one each time.
        stops: texts before which the answer ends.
        top_logprobs: alternatives told per token; None: no log-probabilities are told.
        frequency_penalty, presence_penalty: taken off a token's logit for each time, and once, that
            it stands in the answer.
        logit_bias: token id -> what is added to its logit.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stops: tuple[str, ...] = ()
    top_logprobs: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenChoice:
    """A token of an answer.

    Attributes:
        id: the token.
        logprob: its log-probability before penalties, bias and temperature; None if not asked for.
        top: (token id, log-probability) of the likeliest tokens, the best first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class TokenChooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: its settings.

    Attributes:
        choices: the tokens so far.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.choices: list[TokenChoice] = []
        self._counts: Counter[int] = Counter()
        self._draw = torch.Generator()
        if sampling.seed is None:
            self._draw.seed()
        else:
            self._draw.manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """Choose the next token by its logits, (vocabulary,)."""
        wanted = self.sampling.top_logprobs
        changed = self._penalised(logits)
        token = self._pick(changed)
        if wanted is None:
            self.choices.append(TokenChoice(token))
        else:
            log_probs = logits.float().log_softmax(-1)
            best = log_probs.topk(wanted)
            top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            self.choices.append(TokenChoice(token, float(log_probs[token]), tuple(top)))
        self._counts[token] += 1
        return token

    def _penalised(self, logits: Tensor) -> Tensor:
        settings = self.sampling
        changes = dict(settings.logit_bias)
        if settings.frequency_penalty or settings.presence_penalty:
            for token, count in self._counts.items():
                penalty = settings.frequency_penalty * count + settings.presence_penalty
                changes[token] = changes.get(token, 0.0) - penalty
        if not changes:
            return logits
        places = torch.tensor(list(changes), device=logits.device)
        return logits.index_add(0, places, logits.new_tensor(list(changes.values())))

    def _pick(self, logits: Tensor) -> int:
        settings = self.sampling
        if settings.temperature == 0:
            return int(logits.argmax())
        probabilities = (logits.float().cpu() / settings.temperature).softmax(-1)
        ordered, tokens = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        kept = ordered * (before < settings.top_p)  # the likeliest one always is
        return int(tokens[torch.multinomial(kept, 1, generator=self._draw)])


class RowChoosers(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row of a batch the one token that its chooser takes.

    Args:
        rows: the rows' choosers; None for a row that has ended.
        ended: tells which rows have ended.
    """

    def __init__(self, rows: Sequence[TokenChooser], ended: Sequence[bool]) -> None:
        self.rows, self.ended = rows, ended

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores, (batch, vocabulary): 0 at the chosen tokens, -inf elsewhere."""
        chosen = torch.full_like(scores, -torch.inf)
        for row, (chooser, ended) in enumerate(zip(self.rows, self.ended, strict=True)):
            chosen[row, 0 if ended else chooser.choose(scores[row])] = 0.0
        return chosen
