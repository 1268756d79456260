"""An edited model as lm-evaluation-harness takes it; `ability` measures with it.

The harness takes an edited model as an ordinary Hugging Face model; in addition, each request marks
which tokens are the prompt. A request of (context, continuation) is a question and an answer, and a
routed memory decides on the question alone, as in generation. A text for perplexity is a prompt as
a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from errata.errors import PromptTooLongError, UsageError
from errata.lm import LM
from errata.lm.encoding import Row, in_batches, prompt_tokens
from errata.model import EditModel

try:
    from lm_eval.models.huggingface import HFLM
    from tqdm import tqdm
except ImportError as error:
    raise UsageError(
        "general ability needs lm-evaluation-harness: pip install 'errata[ability]'."
    ) from error

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""(context, continuation) as texts, or None where a text is read; then the token ids of both."""
Likelihood = tuple[float, bool]
"""The log-probability of a continuation, in nats, and whether each token is the likeliest."""


@dataclass(frozen=True)
class HarnessRequest:
    """A request of the harness in tokens.

    Attributes:
        ids: context and continuation, as far as they fit; the last is predicted, never read.
        prompt_length: how many of them a memory decides on.
        continuation_length: how many, at the end, are the continuation.
    """

    ids: tuple[int, ...]
    prompt_length: int
    continuation_length: int

    @property
    def input_row(self) -> Row:
        """What the model reads."""
        return Row(self.ids[:-1], self.prompt_length)

    def likelihood(self, logits: Tensor) -> Likelihood:
        """Compute the continuation's likelihood from all logits (tokens, vocabulary)."""
        log_probs = logits[-self.continuation_length :].float().log_softmax(-1)
        tokens = torch.tensor(self.ids[-self.continuation_length :], device=logits.device)
        return float(log_probs.gather(1, tokens[:, None]).sum()), bool(
            (log_probs.argmax(-1) == tokens).all()
        )


class HarnessModel(HFLM):  # type: ignore[misc]
    """An edited model as a model of lm-evaluation-harness.

        lm_eval.simple_evaluate(HarnessModel(model), tasks=[...])

    Args:
        model: an edited model, or a language model without edits.
        batch_size: requests at a time.
    """

    def __init__(self, model: EditModel | LM, batch_size: int = 8) -> None:
        self.lm = model.lm if isinstance(model, EditModel) else model
        tokenizer = copy.deepcopy(self.lm.tokenizer)  # the harness sets its padding
        if tokenizer.pad_token is None:
            tokenizer.pad_token_id = self.lm.pad_id
        # An `EditModel` goes in as it is, since its `generate` knows what the prompt is.
        pretrained = model if isinstance(model, EditModel) else model.model
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, batch_size=batch_size)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Likelihood]:
        """Score requests; those that differ in the last token only share a row."""
        encoded = [self._encoded(*request) for request in requests]
        alike: dict[Row, set[HarnessRequest]] = {}
        for each in encoded:
            alike.setdefault(each.input_row, set()).add(each)
        found: dict[HarnessRequest, Likelihood] = {}
        with tqdm(
            total=len(alike), desc="Running loglikelihood requests", disable=disable_tqdm or None
        ) as shown:

            def read(part: list[Row]) -> list[dict[HarnessRequest, Likelihood]]:
                batch = self.lm.batch(part)
                with prompt_tokens(batch.prompt_mask):
                    logits = self.lm.run(batch).logits
                shown.update(len(part))
                return [
                    {each: each.likelihood(logits[i]) for each in alike[row]}
                    for i, row in enumerate(part)
                ]

            for likelihoods in in_batches(
                list(alike), read, self.batch_size, size=lambda row: len(row.ids)
            ):
                found.update(likelihoods)
        for (texts, *_), each in zip(requests, encoded, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, found[each])
        return [found[each] for each in encoded]

    def _encoded(
        self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]
    ) -> HarnessRequest:
        """Return as much of a request as fits, cut at its beginning."""
        if len(continuation) > self.max_length:
            raise PromptTooLongError(
                f"a continuation takes {len(continuation)} tokens; this model's context is "
                f"{self.max_length}. Leave the task out, or shorten its answers."
            )
        whole = [*context, *continuation]
        prompt = len(whole) - 1 if texts is None else len(context)
        # The harness moves white space at the context's end to the continuation.
        if texts is not None and texts[0] != texts[0].rstrip():
            question = self.tok_encode(texts[0])
            prompt = len(question) if whole[: len(question)] == question else prompt
        cut = max(0, len(whole) - self.max_length - 1)
        return HarnessRequest(tuple(whole[cut:]), prompt - cut, len(continuation))
