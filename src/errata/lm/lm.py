"""`LM`: a language model as the editing papers assume it: model, tokenizer, architecture.

It encodes (see `prompt_encoder.py`), pads, scores and generates in batches, and announces which
tokens are the prompt (see `encoding.py`). It knows no files and no patches.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from errata.arguments import as_list
from errata.errors import ConfigError
from errata.lm.architecture import Architecture, architecture_of
from errata.lm.cache import cache_name
from errata.lm.encoding import Batch, Row, in_batches, prompt_tokens
from errata.lm.hooks import tensor_of
from errata.lm.prompt_encoder import PromptEncoder

BATCH = 32
ANSWER_LENGTH = 32
"""New tokens after which an answer is cut, unless the options of `generate` say otherwise."""


@dataclass(frozen=True)
class Score:
    """Teacher-forced score of a target.

    Attributes:
        token_accuracy: share of target tokens that are the argmax, as the papers count.
        exact: whether all of them are.
        loss: mean negative log-likelihood of the target tokens, in nats.
        predicted: the argmax at each target position.
        log_probs: (n, vocabulary) on the CPU: log-probabilities at each target position; None
            unless asked for.
    """

    token_accuracy: float
    exact: bool
    loss: float
    predicted: tuple[int, ...]
    log_probs: Tensor | None = None


class LM(PromptEncoder):
    """A causal language model as the editing papers see it.

    Args:
        model: any causal model of transformers that `architecture_of` accepts.
        tokenizer: its tokenizer.
        chat: put prompts into the chat template; None means "when the tokenizer has one".
        learns_eos: answers are taught with the model's end token.

    Raises:
        ConfigError: `chat` is True and the tokenizer has no template.
        ArchitectureError: the model has no value matrix to edit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat: bool | None = None,
        learns_eos: bool = True,
    ) -> None:
        super().__init__(model, tokenizer, chat)
        self.learns_eos = learns_eos
        self.architecture: Architecture = architecture_of(model)
        arguments = inspect.signature(model.forward).parameters
        self.takes_position_ids = "position_ids" in arguments
        self.leaves_out_logits = "logits_to_keep" in arguments
        self.cache_name = cache_name(model)

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings, where token ids go in."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def pad_id(self) -> int:
        """The padding token; masked everywhere, so any token serves when the tokenizer has none."""
        candidates = (self.tokenizer.pad_token_id, *self.end_ids)
        return int(next((i for i in candidates if i is not None), 0))

    def batch(self, rows: Sequence[Row], side: str = "left") -> Batch:
        """Pad rows to one width, on the left unless `side` is "right"."""
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        masks = torch.zeros(4, len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            start = width - len(row.ids) if side == "left" else 0
            target = start + row.prompt_length
            ending = target + row.target_length
            stop = start + len(row.ids)
            ids[i, start:stop] = torch.tensor(row.ids)
            spans = ((start, stop), (start, target), (target, ending), (ending, stop))
            for mask, (first, end) in zip(masks, spans, strict=True):
                mask[i, first:end] = True
        ids, masks = ids.to(self.device), masks.to(self.device)
        return Batch(ids, masks[0].long(), masks[1], masks[2], masks[3])

    def prompt_batch(self, prompts: str | Iterable[str], side: str = "left") -> Batch:
        """Encode prompts without targets and pad them."""
        encoded = (self.encode_prompt(prompt) for prompt in as_list(prompts, str, "prompts"))
        return self.batch([Row(tuple(ids), len(ids)) for ids in encoded], side)

    def run(self, batch: Batch, keep: int | None = None, **options: Any) -> Any:
        """Run the model's forward on a batch, with position ids that do not count padding.

        Args:
            batch: padded rows.
            keep: return the logits of so many last columns only; where the model can, the others
                are not computed. None: of all.
            options: of the model's forward.
        """
        if self.takes_position_ids:
            options["position_ids"] = batch.position_ids
        if keep is not None and self.leaves_out_logits:
            options["logits_to_keep"] = keep
        out = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
        if keep is not None:
            out.logits = out.logits[:, -keep:]
        return out

    @torch.no_grad()
    def run_body(self, batch: Batch) -> Tensor:
        """Run the model without its head; return the head's inputs, (batch, width, hidden)."""
        body = self.architecture.body_module(self.model)
        options: dict[str, Any] = {"use_cache": False}
        if "position_ids" in inspect.signature(body.forward).parameters:
            options["position_ids"] = batch.position_ids
        return tensor_of(
            body, body(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
        )

    @torch.no_grad()
    def score(
        self,
        pairs: Iterable[tuple[str, str]],
        batch_size: int = 32,
        side: str = "left",
        whole: bool = False,
    ) -> list[Score]:
        """Score (prompt, target) pairs, teacher-forced; routed memories decide on the prompt alone.

        With `whole`, the log-probabilities of the whole vocabulary are kept.
        """
        pairs = as_list(list(pairs), tuple, "pairs")
        rows = [self.encode(prompt, target) for prompt, target in pairs]

        def scores(part: list[Row]) -> list[Score]:
            batch = self.batch(part, side)
            row, columns, labels = batch.label_positions(batch.target_mask)
            first = int(columns.min())  # no logits before it are read
            with prompt_tokens(batch.prompt_mask):
                logits = self.run(batch, keep=batch.input_ids.shape[1] - first).logits
            picked = logits[row, columns - first].float()
            return [_score(picked[row == i], labels[row == i], whole) for i in range(len(part))]

        return in_batches(rows, scores, batch_size, size=lambda row: len(row.ids))

    @overload
    def generate(self, prompts: str, batch_size: int = 32, **options: Any) -> str: ...
    @overload
    def generate(
        self, prompts: Iterable[str], batch_size: int = 32, **options: Any
    ) -> list[str]: ...
    @torch.no_grad()
    def generate(
        self, prompts: str | Iterable[str], batch_size: int = 32, **options: Any
    ) -> str | list[str]:
        """Generate one answer per prompt: greedily, until the model's end token.

        The model's `generation_config` does not count. Options are those of `generate` in
        transformers.

        Raises:
            ConfigError: the options ask for something other than one answer per prompt.
        """
        encoded = [self.encode_prompt(prompt) for prompt in as_list(prompts, str, "prompts")]
        context, limit = self.context_length, answer_limit(options)

        def answers(part: list[list[int]]) -> list[str]:
            batch = self.batch([Row(tuple(ids), len(ids)) for ids in part])
            width = batch.input_ids.shape[1]
            if limit:
                room = context - width if context else limit
                if limit > room and len(part) > 1:  # a long prompt must not cut the others' answers
                    return [answer for ids in part for answer in answers([ids])]
                options["max_new_tokens"] = max(1, min(limit, room))
            with prompt_tokens(batch.prompt_mask):
                out = self.greedy_model().generate(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options
                )
            return [self.decode(ids[width:].tolist()) for ids in out]

        generated = in_batches(encoded, answers, batch_size, size=len)
        return generated[0] if isinstance(prompts, str) else generated

    def greedy_model(self) -> PreTrainedModel:
        """Return the model with a greedy `generation_config` that keeps only special tokens.

        It is a view: modules, hooks and weights are the model's.
        """
        view = copy.copy(self.model)
        own = self.model.generation_config
        view.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=list(self.end_ids) or None,
            pad_token_id=self.pad_id,
            bos_token_id=getattr(own, "bos_token_id", None),
            decoder_start_token_id=getattr(own, "decoder_start_token_id", None),
        )
        return view

    @torch.no_grad()
    def endings(self, pairs: Sequence[tuple[str, str]]) -> list[str | None]:
        """Return what stands between each (prompt, target) pair's target and its end token.

        That is "." where this model itself would put a full stop and end, else "". None where
        answers are taught without their end token (`learns_eos=False`).
        """
        if not self.learns_eos:
            return [None] * len(pairs)
        dotted = [self.encode(prompt, target, ".") for prompt, target in pairs]
        plain = [self.encode(prompt, target) for prompt, target in pairs]
        # rows whose full stop is one token, followed by the end token
        candidates = [i for i, row in enumerate(dotted) if len(row.ids) == len(plain[i].ids) + 2]

        def ends_dotted(part: list[int]) -> list[bool]:
            rows = [dotted[i] for i in part]
            best = self.run(self.batch(rows), keep=3).logits[:, :-1].argmax(-1).tolist()
            return [
                dot == row.ids[-2] and end in self.end_ids
                for row, (dot, end) in zip(rows, best, strict=True)
            ]

        results = in_batches(candidates, ends_dotted, BATCH, size=lambda i: len(dotted[i].ids))
        with_dot = {i for i, yes in zip(candidates, results, strict=True) if yes}
        return ["." if i in with_dot else "" for i in range(len(pairs))]

    def ending_of(self, prompt: str, target: str) -> str | None:
        """Return the ending with which one answer is taught, see `endings`."""
        return self.endings([(prompt, target)])[0]


def _score(logits: Tensor, labels: Tensor, whole: bool) -> Score:
    """The score of one target from its logits (n, vocabulary) and labels (n,)."""
    predicted = logits.argmax(-1)
    right = (predicted == labels).float()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return Score(
        right.mean().item(),
        bool(right.all()),
        losses.mean().item(),
        tuple(predicted.tolist()),
        logits.log_softmax(-1).cpu() if whole else None,
    )


def answer_limit(options: Mapping[str, Any]) -> int | None:
    """Return the most new tokens of an answer, by options of `generate`.

    None where they limit prompt and answer together.

    Raises:
        ConfigError: the options ask for something other than one text per prompt.
    """
    if (options.get("num_return_sequences") or 1) != 1 or options.get("return_dict_in_generate"):
        raise ConfigError(
            "num_return_sequences is 1 here, and answers are texts; for more, use model.generate."
        )
    settings = options.get("generation_config")
    new, whole = (
        options.get(name) or getattr(settings, name, None)
        for name in ("max_new_tokens", "max_length")
    )
    return int(new) if new else None if whole else ANSWER_LENGTH
