"""`PromptEncoder`: prompts and answers of one model as token ids, and back.

A prompt keeps exactly the tokens it has alone when a target follows it, so what is read from the
prompt does not depend on the target. This reads the model's configuration and never runs the model;
`lm.py` does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from errata.errors import ConfigError, PromptTooLongError
from errata.lm.chat import ChatTemplate, Conversation
from errata.lm.encoding import Row

KEPT = 1024
"""Token ids whose conversation is kept, at most."""


class PromptEncoder:
    """A tokenizer with its chat template, for one model.

    Args:
        model: a causal model of transformers; its context length and end tokens are read.
        tokenizer: its tokenizer.
        chat: put prompts into the chat template; None means "when the tokenizer has one".

    Raises:
        ConfigError: `chat` is True and the tokenizer has no template, or its template cannot write
            a question.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat: bool | None = None,
    ) -> None:
        if chat and not tokenizer.chat_template:
            raise ConfigError(
                "chat_template is on, but this tokenizer has no chat template; leave it out."
            )
        self.model, self.tokenizer = model, tokenizer
        self.chat = bool(tokenizer.chat_template) if chat is None else chat
        self.template = ChatTemplate(tokenizer) if self.chat else None
        self._decoded = lru_cache(KEPT)(self._conversation)
        self._asked = lru_cache(KEPT)(self._questions)

    @property
    def name(self) -> str:
        """The model's folder or hub name; "" where it has none."""
        return str(getattr(self.model.config, "_name_or_path", ""))

    @property
    def context_length(self) -> int:
        """The most tokens the model takes; 0 when it states no limit."""
        config = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if isinstance(length := getattr(config, name, None), int):
                return length
        return 0

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a generation."""
        generation = getattr(self.model, "generation_config", None)
        ids = getattr(generation, "eos_token_id", None) or self.tokenizer.eos_token_id
        if isinstance(ids, list | tuple):
            return tuple(ids)
        return () if ids is None else (int(ids),)

    def apply_chat_template(self, prompt: str) -> str:
        """Return the text the model is given: the prompt, in the chat template if there is one."""
        return prompt if self.template is None else self.template.render(prompt)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return a prompt's token ids, in the chat template if any, with special tokens.

        Raises:
            PromptTooLongError: it leaves no room for an answer.
        """
        ids = self.encode_text(self.apply_chat_template(prompt))
        self._check_length(len(ids) + 1, prompt)
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text as it stands, with special tokens.

        See `apply_chat_template`. The ids are of any length, but at least one.
        """
        ids = self._ids(text)
        if len(ids) > 1 and not self.chat:
            ids = self._without_end(ids)
        fallbacks = (self.tokenizer.bos_token_id, *self.end_ids, 0)
        return ids or [i for i in fallbacks if i is not None][:1]

    def encode_piece(self, text: str) -> list[int]:
        """Return the token ids of a piece of text, without special tokens around it."""
        return self.encode_pieces([text])[0]

    def encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each of many pieces of text, without special tokens."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [list(ids) for ids in found]

    def encode(self, prompt: str, target: str, ending: str | None = None) -> Row:
        """Encode a prompt, its target as the model would generate it, and the ending.

        Args:
            prompt: the question, or the text to continue.
            target: the answer; a space is put before it where the script uses spaces.
            ending: text after the target; the end token follows it. None: the row stops after the
                target.

        Raises:
            PromptTooLongError: the row does not fit the model's context.
        """
        prompt_ids, rendered = self.encode_prompt(prompt), self.apply_chat_template(prompt)
        text = self._gap(prompt, target) + target
        target_ids = self._continue(rendered, prompt_ids, text)
        ids = prompt_ids + target_ids
        if ending is not None:
            ended_ids = self._continue(rendered, prompt_ids, text + ending)
            if ended_ids[: len(target_ids)] == target_ids:
                ids = prompt_ids + ended_ids
            ids = [*ids, *self.end_ids[:1]]
        self._check_length(len(ids), prompt)
        return Row(tuple(ids), len(prompt_ids), len(target_ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Return an answer's text up to its end token, without special tokens and outer space."""
        stop = next((i for i, token in enumerate(ids) if token in self.end_ids), len(ids))
        return str(self.tokenizer.decode(list(ids[:stop]), skip_special_tokens=True)).strip()

    def questions(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Return the user's words in token ids: the last question first, see `Conversation`.

        It is less work than `conversation`, which tells in which way they were encoded. Those that
        were asked last are kept.
        """
        return self._asked(tuple(ids))

    def _questions(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        text, parsed = self._parsed(ids)
        if parsed.questions != (text,):
            return parsed.questions
        if (prompt := self._framed(text)) is None:  # no turns: the words alone
            prompt = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return (prompt.removeprefix(" "),)  # which some tokenizers put before every text

    def conversation(self, ids: Sequence[int]) -> Conversation:
        """Decode token ids into a prompt, a conversation, or plain text.

        A prompt is one that `encode_prompt` encodes to these ids; a conversation is in the chat
        template. Those that were decoded last are kept.
        """
        return self._decoded(tuple(ids))

    def _conversation(self, ids: Sequence[int]) -> Conversation:
        text, parsed = self._parsed(ids)
        prompt = self._framed(text) if len(parsed.questions) == 1 else None
        if prompt is not None:
            front, back = (self.template.front, self.template.back) if self.template else ("", "")
            # some tokenizers put a space before every text
            for candidate in (prompt.removeprefix(" "), prompt):
                if self._encodes_to(candidate, ids):
                    return Conversation((candidate,), front, back, candidate)
        if self.template is not None and parsed.questions == (text,):  # no turns: the words alone
            return Conversation((str(self.tokenizer.decode(list(ids), skip_special_tokens=True)),))
        return parsed

    def _parsed(self, ids: Sequence[int]) -> tuple[str, Conversation]:
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=not self.chat))
        return text, self.template.parse(text) if self.template else Conversation((text,))

    def _framed(self, text: str) -> str | None:
        """Return what stands in a text between what the template puts around a single prompt; None
        where it does not stand around it.
        """
        front, back = (self.template.front, self.template.back) if self.template else ("", "")
        if not (text.startswith(front) and text.endswith(back)) or len(text) < len(front + back):
            return None
        return text[len(front) : len(text) - len(back)]

    def _encodes_to(self, prompt: str, ids: Sequence[int]) -> bool:
        if {*self.tokenizer.all_special_ids} & {*self.encode_piece(prompt)}:
            return False
        try:
            return self.encode_prompt(prompt) == list(ids)
        except PromptTooLongError:
            return False

    def _gap(self, prompt: str, target: str) -> str:
        """What stands between a prompt and its target: a space, except between wide characters."""
        if self.chat or not prompt or prompt[-1].isspace() or target[0].isspace():
            return ""
        wide = all(unicodedata.east_asian_width(c) in "WF" for c in (prompt[-1], target[0]))
        return "" if wide else " "

    def _continue(self, rendered: str, prompt_ids: list[int], text: str) -> list[int]:
        """Token ids of `text` after the prompt's own, such that both decode to the joined texts."""
        whole = self._without_end(self._ids(rendered + text))
        wanted = self.tokenizer.decode(whole, skip_special_tokens=True)
        first: list[int] = []
        for ids in self._continuations(whole, prompt_ids, text):
            if ids and self.tokenizer.decode(prompt_ids + ids, skip_special_tokens=True) == wanted:
                return ids
            first = first or ids
        return first

    def _continuations(
        self, whole: list[int], prompt_ids: list[int], text: str
    ) -> Iterator[list[int]]:
        """Candidate token ids of `text`, the likeliest first."""
        if whole[: len(prompt_ids)] == prompt_ids:
            yield whole[len(prompt_ids) :]
        yield self.encode_piece(text)
        yield self.encode_piece(text.lstrip())
        # a tokenizer that puts a space before a text on its own puts none after other characters
        for anchor in ("(", "\n", "0"):
            ids, anchor_ids = self.encode_piece(anchor + text), self.encode_piece(anchor)
            if ids[: len(anchor_ids)] == anchor_ids:
                yield ids[len(anchor_ids) :]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=not self.chat)["input_ids"])

    def _without_end(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self.end_ids else ids

    def _check_length(self, length: int, prompt: str) -> None:
        if self.context_length and length > self.context_length:
            start = prompt if len(prompt) <= 40 else prompt[:40] + "…"
            raise PromptTooLongError(
                f"the prompt {start!r} with its answer takes {length} tokens; this model's context "
                f"is {self.context_length}. Shorten the prompt."
            )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return all tokens that are not read as text (end token, turn marks), with their ids."""
    added = {
        str(token): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def special_token_in(
    text: str, special: Mapping[str, int], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Return one of `special_tokens` that the tokenizer makes of a part of the text, or None."""
    candidates = [token for token in special if token in text]
    ids = set(tokenizer(text, add_special_tokens=False)["input_ids"]) if candidates else set()
    return next((token for token in candidates if special[token] in ids), None)
