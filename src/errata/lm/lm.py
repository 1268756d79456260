"""`LM`: what the papers assume a language model is. A model, its tokenizer and its architecture; no
files, no patches.

It encodes a prompt and its target so that the prompt's tokens are exactly those seen when the
prompt is asked alone, pads, scores and generates in batches, and announces which tokens are the
prompt (see `encoding.py`).
"""

from __future__ import annotations

import contextlib
import inspect
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.arguments import listed
from errata.errors import ConfigError, PromptTooLongError
from errata.lm.architecture import Architecture, architecture_of
from errata.lm.chat import ChatTemplate, Conversation
from errata.lm.encoding import Batch, Row, announced_prompt_tokens, in_batches, prompt_tokens
from errata.lm.endings import answer_limit, endings_of, plainly

__all__ = ["LM", "Batch", "Row", "Score", "announced_prompt_tokens", "in_batches", "prompt_tokens"]


@dataclass(frozen=True)
class Score:
    """Teacher-forced score of a target.

    Attributes:
        token_accuracy: share of target tokens that are the argmax, as the papers count.
        exact: all of them are.
        loss: mean negative log-likelihood of the target tokens, in nats.
        predicted: the argmax at each target position.
        log_probs: (n, vocabulary), what was expected at each, where it was asked for; on the CPU.
    """

    token_accuracy: float
    exact: bool
    loss: float
    predicted: tuple[int, ...]
    log_probs: torch.Tensor | None = None


class LM:
    """A causal language model as the editing papers see it.

    Args:
        model: any causal model of transformers that `architecture_of` accepts.
        tokenizer: its tokenizer.
        chat: put prompts into the chat template; None means "when the tokenizer has one".
        learns_eos: answers are taught with the model's end token.

    Raises:
        ConfigError: `chat` is asked for and the tokenizer has no template.
        ArchitectureError: the model has no value matrix to edit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat: bool | None = None,
        learns_eos: bool = True,
    ) -> None:
        if chat and not tokenizer.chat_template:
            raise ConfigError(
                "chat_template is on, but this tokenizer has no chat template; leave it out."
            )
        self.model = model
        self.tokenizer, self.learns_eos = tokenizer, learns_eos
        self.chat = bool(tokenizer.chat_template) if chat is None else chat
        self.template = ChatTemplate(tokenizer) if self.chat else None
        self.architecture: Architecture = architecture_of(model)
        self.takes_position_ids = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def context_length(self) -> int:
        """The most tokens the model takes, 0 when it states no limit."""
        config = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if isinstance(length := getattr(config, name, None), int):
                return length
        return 0

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a generation."""
        generation = getattr(self.model, "generation_config", None)
        found = getattr(generation, "eos_token_id", None) or self.tokenizer.eos_token_id
        return (
            tuple(found)
            if isinstance(found, list | tuple)
            else ()
            if found is None
            else (int(found),)
        )

    @property
    def pad_id(self) -> int:
        """The padding token; masked everywhere, so any token serves when the tokenizer has none."""
        return int(
            next((i for i in (self.tokenizer.pad_token_id, *self.end_ids) if i is not None), 0)
        )

    # encoding

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of the prompt as it is asked: in the chat template if there is one, with
        special tokens.

        Raises:
            PromptTooLongError: it leaves no room for an answer.
        """
        ids = self.encode_asked(self.asked(prompt))
        self._check_length(len(ids) + 1, prompt)
        return ids

    def encode_asked(self, asked: str) -> list[int]:
        """Token ids of a text as the model is given it, see `asked`; with special tokens; of any
        length, but never none.
        """
        ids = self._ids(asked)
        ids = self._without_end(ids) if len(ids) > 1 and not self.chat else ids
        return (
            ids or [i for i in (self.tokenizer.bos_token_id, *self.end_ids, 0) if i is not None][:1]
        )

    def conversation(self, ids: Sequence[int]) -> Conversation:
        """What these ids ask: a prompt as `encode_prompt` encodes it, a conversation in the chat
        template, or any text.
        """
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=not self.chat))
        read = Conversation((text,)) if self.template is None else self.template.read(text)
        front, back = (
            ("", "") if self.template is None else (self.template.front, self.template.back)
        )
        if (
            len(read.questions) == 1
            and text.startswith(front)
            and text.endswith(back)
            and len(text) >= len(front + back)
        ):
            prompt = text[len(front) : len(text) - len(back)]
            for one in (
                prompt.removeprefix(" "),
                prompt,
            ):  # some tokenizers put a space in front of every text
                with contextlib.suppress(PromptTooLongError):
                    if not {*self.tokenizer.all_special_ids} & {
                        *self._piece(one)
                    } and self.encode_prompt(one) == list(ids):
                        return Conversation((one,), front, back, one)
        if self.template is not None and read.questions == (text,):  # no turns: the words alone
            read = Conversation((str(self.tokenizer.decode(list(ids), skip_special_tokens=True)),))
        return read

    def encode(self, prompt: str, target: str, ending: str | None = None) -> Row:
        """The prompt's own tokens, then the target's as the model would say them, then the ending.

        Args:
            prompt: the question, or the text to go on from.
            target: the answer; a space is put between where the script uses spaces.
            ending: text after the target; the end token follows it. None: the row stops with the
                target.

        Raises:
            PromptTooLongError: the whole does not fit the model's context.
        """
        front = self.encode_prompt(prompt)
        text = self._gap(prompt, target) + target
        said = self._continue(self.asked(prompt), front, text)
        ids = front + said
        if ending is not None:
            closed = self._continue(self.asked(prompt), front, text + ending)
            if closed[: len(said)] == said:
                ids = front + closed
            ids = [*ids, *self.end_ids[:1]]
        self._check_length(len(ids), prompt)
        return Row(tuple(ids), len(front), len(said))

    def batch(self, rows: Sequence[Row], side: str = "left") -> Batch:
        """Pad rows to one width, on the left unless told otherwise."""
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        masks = torch.zeros(4, len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            start = width - len(row.ids) if side == "left" else 0
            prompt = start + row.prompt_length
            target = prompt + row.target_length
            stop = start + len(row.ids)
            ids[i, start:stop] = torch.tensor(row.ids)
            for mask, span in zip(
                masks,
                ((start, stop), (start, prompt), (prompt, target), (target, stop)),
                strict=True,
            ):
                mask[i, span[0] : span[1]] = True
        ids, masks = ids.to(self.device), masks.to(self.device)
        return Batch(ids, masks[0].long(), masks[1], masks[2], masks[3])

    def prompt_batch(self, prompts: str | Iterable[str], side: str = "left") -> Batch:
        """Prompts alone, encoded and padded."""
        encoded = (self.encode_prompt(prompt) for prompt in listed(prompts, str, "prompts"))
        return self.batch([Row(tuple(ids), len(ids)) for ids in encoded], side)

    # asking

    def run(self, batch: Batch, **options: Any) -> Any:
        """The model's forward on a batch; padding on either side moves no token to another
        position.
        """
        if self.takes_position_ids:
            options["position_ids"] = batch.position_ids
        return self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)

    @torch.no_grad()
    def score(
        self,
        pairs: Iterable[tuple[str, str]],
        batch_size: int = 32,
        side: str = "left",
        whole: bool = False,
    ) -> list[Score]:
        """Teacher-forced scores of (prompt, target) pairs; routed memories decide on the prompt
        alone.

        With `whole`, the log-probabilities of all tokens are kept.
        """
        rows = [
            self.encode(prompt, target) for prompt, target in listed(list(pairs), tuple, "pairs")
        ]

        def scored(part: list[Row]) -> list[Score]:
            batch = self.batch(part, side)
            with prompt_tokens(batch.prompt_mask):
                logits = self.run(batch).logits
            where, columns, labels = batch.label_positions(batch.target_mask)
            picked = logits[where, columns].float()
            losses = torch.nn.functional.cross_entropy(picked, labels, reduction="none")
            best = picked.argmax(-1)
            scores = []
            for i in range(len(part)):
                mine = where == i
                right = (best[mine] == labels[mine]).float()
                guess = tuple(best[mine].tolist())
                logs = picked[mine].log_softmax(-1).cpu() if whole else None
                scores.append(
                    Score(
                        right.mean().item(),
                        bool(right.all()),
                        losses[mine].mean().item(),
                        guess,
                        logs,
                    )
                )
            return scores

        return in_batches(rows, scored, batch_size, size=lambda row: len(row.ids))

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
        """Answers in words, one per prompt: greedy, ended by the model, whatever
        `generation_config` says; options count.

        Raises:
            ConfigError: the options ask for something else than one answer each.
        """
        encoded = [self.encode_prompt(prompt) for prompt in listed(prompts, str, "prompts")]
        room, limit = self.context_length, answer_limit(options)

        def answered(part: list[list[int]]) -> list[str]:
            batch = self.batch([Row(tuple(ids), len(ids)) for ids in part])
            width = batch.input_ids.shape[1]
            if limit:
                if (
                    room and limit > room - width and len(part) > 1
                ):  # a long neighbour must not cut a short one's answer
                    return [answer for ids in part for answer in answered([ids])]
                options["max_new_tokens"] = max(1, min(limit, room - width)) if room else limit
            with prompt_tokens(batch.prompt_mask):
                out = plainly(self).generate(
                    input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options
                )
            return [self.decode(ids[width:].tolist()) for ids in out]

        answers = in_batches(encoded, answered, batch_size, size=len)
        return answers[0] if isinstance(prompts, str) else answers

    def decode(self, ids: Sequence[int]) -> str:
        """Words of an answer: up to its end token, without special tokens and outer white space."""
        stop = next((i for i, token in enumerate(ids) if token in self.end_ids), len(ids))
        return str(self.tokenizer.decode(list(ids[:stop]), skip_special_tokens=True)).strip()

    def ending_of(self, prompt: str, target: str) -> str | None:
        """How such an answer ends where it is taught, see `endings_of`."""
        return endings_of(self, [(prompt, target)])[0]

    # the text that is really asked

    def asked(self, prompt: str) -> str:
        """The text that the model is given: the prompt, in the chat template if there is one."""
        return prompt if self.template is None else self.template.write(prompt)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=not self.chat)["input_ids"])

    def _gap(self, prompt: str, target: str) -> str:
        if self.chat or not prompt or prompt[-1].isspace() or target[0].isspace():
            return ""
        wide = (
            unicodedata.east_asian_width(prompt[-1]) in "WF"
            and unicodedata.east_asian_width(target[0]) in "WF"
        )
        return "" if wide else " "

    def _continue(self, asked: str, front: list[int], text: str) -> list[int]:
        """Ids of `text` behind the prompt's own ids; the whole must read as the two texts together."""
        whole = self._without_end(self._ids(asked + text))
        wanted = self.tokenizer.decode(whole, skip_special_tokens=True)
        first: list[int] = []
        for ids in self._ways_to_continue(whole, front, text):
            if ids and self.tokenizer.decode(front + ids, skip_special_tokens=True) == wanted:
                return ids
            first = first or ids
        return first

    def _ways_to_continue(
        self, whole: list[int], front: list[int], text: str
    ) -> Iterator[list[int]]:
        if whole[: len(front)] == front:
            yield whole[len(front) :]
        yield self._piece(text)
        yield self._piece(text.lstrip())
        for anchor in (
            "(",
            "\n",
            "0",
        ):  # where a text by itself gets a space in front, behind something it gets none
            ids, known = self._piece(anchor + text), self._piece(anchor)
            if ids[: len(known)] == known:
                yield ids[len(known) :]

    def _piece(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self.end_ids else ids

    def _check_length(self, length: int, prompt: str) -> None:
        if self.context_length and length > self.context_length:
            start = prompt if len(prompt) <= 40 else prompt[:40] + "…"
            raise PromptTooLongError(
                f"the prompt {start!r} with its answer takes {length} tokens; this model's context is "
                f"{self.context_length}. Shorten the prompt."
            )
