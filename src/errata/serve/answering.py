"""Answers OpenAI's requests: puts prompts to the engine, and its pieces into OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

from errata.errors import UnknownNameError, UsageError, suggest
from errata.serve.openai import (
    MOST_CHOICES,
    Answer,
    AnswerRequest,
    ChatRequest,
    CompletionRequest,
    Message,
    Usage,
    new_id,
    now,
)
from errata.serve.requests import Piece, Request
from errata.serve.sampling import TokenChoice
from errata.serve.service import Service

BASE = "-base"
"""What stands behind the edited model's name in that of its base model."""
MOST_WAITING = 256
"""Requests that may wait for the engine before more are refused."""


def refuse_if_too_many(service: Service) -> None:
    """Refuse a request where too many wait already.

    Raises:
        HTTPException: they do.
    """
    if service.engine.waiting >= MOST_WAITING:
        raise HTTPException(
            429, f"{MOST_WAITING} requests wait already; try again.", {"Retry-After": "1"}
        )


def reach(service: Service, version: int) -> None:
    """Bring the model to a version that another server has written, or to a later one.

    Raises:
        StorageError: the ledger cannot be used.
        UnknownNameError: it has no such version yet.
    """
    if version > service.version:
        service.catch_up()
    if version > service.version:
        raise UnknownNameError(f"there is no version {version}; the last is {service.version}.")


@dataclass
class Choice:
    """One of the answers to a request, as it grows."""

    text: str = ""
    tokens: list[TokenChoice] = field(default_factory=list)
    last: Piece = field(default_factory=Piece)

    def add(self, piece: Piece) -> None:
        """Add what is new."""
        self.text += piece.text
        self.tokens += piece.choices
        self.last = piece


class Answering:
    """A request that is being answered.

    Args:
        service: the served model.
        name: the edited model's.
        request: what is wanted.

    Raises:
        UnknownNameError: no model has the name that the request gives.
        UsageError: a prompt is not one that the model can be given.
        PromptTooLongError: a prompt leaves no room for an answer.
    """

    def __init__(self, service: Service, name: str, request: AnswerRequest) -> None:
        names = name, name + BASE
        if request.model not in names:
            raise UnknownNameError(
                f"no model {request.model!r} is served.{suggest(request.model, names)}"
            )
        self.service, self.request = service, request
        self.chat = isinstance(request, ChatRequest)
        self.id = new_id("chatcmpl" if self.chat else "cmpl")
        self.created, self.begun = now(), time.monotonic()
        prompts = self._prompts()
        if len(prompts) * request.n > MOST_CHOICES:
            raise UsageError(
                f"{len(prompts)} prompts with n = {request.n} are more than {MOST_CHOICES} "
                "answers; send several requests."
            )
        self.read = sum(map(len, prompts))
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop, vocabulary = asyncio.get_running_loop(), service.engine.vocabulary
        self.requests: list[Request] = []
        for prompt in prompts:
            room = service.engine.room(prompt)
            for number in range(request.n):
                index = len(self.requests)

                def told(piece: Piece, index: int = index) -> None:
                    loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

                sampling = request.sampling(room, vocabulary, number)
                edited = request.model == name
                self.requests.append(Request(tuple(prompt), sampling, edited, told))
        self.choices = [Choice() for _ in self.requests]

    def _prompts(self) -> list[list[int]]:
        """Return the prompts' token ids."""
        lm, request = self.service.engine.lm, self.request
        if isinstance(request, ChatRequest):
            return [self._conversation(request.messages)]
        found = []
        for prompt in request.prompts if isinstance(request, CompletionRequest) else ():
            if isinstance(prompt, str):
                found.append(lm.encode_text(prompt))
                continue
            if wrong := [
                token for token in prompt if not 0 <= token < self.service.engine.vocabulary
            ]:
                raise UsageError(f"'prompt' has the token id {wrong[0]}, which the model lacks.")
            found.append(prompt)
        return found

    def _conversation(self, messages: Sequence[Message]) -> list[int]:
        lm = self.service.engine.lm
        if lm.template is None:
            return lm.encode_text("\n".join(message.text for message in messages))
        turns = [
            ("system" if message.role == "developer" else message.role, message.text)
            for message in messages
        ]
        return lm.encode_text(lm.template.render_turns(*turns))

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Submit the request; yield (number of the choice, what is new of it) until all have ended.

        Whoever stops listening ends the answers.
        """
        for request in self.requests:
            self.service.engine.submit(request)
        open_choices = len(self.requests)
        try:
            while open_choices:
                index, piece = await self._pieces.get()
                if piece.error is not None:
                    raise piece.error
                self.choices[index].add(piece)
                open_choices -= piece.finish is not None
                yield index, piece
        finally:
            for request in self.requests:
                request.cancel()

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        written = sum(len(choice.tokens) for choice in self.choices)
        return Usage(
            prompt_tokens=self.read, completion_tokens=written, total_tokens=self.read + written
        )

    @property
    def headers(self) -> dict[str, str]:
        """Which version answers, and which edits speak in any choice."""
        last = self.choices[0].last
        spoken = [e for c in self.choices if c.last.outcome for e in c.last.outcome.edit_ids]
        headers = {"errata-version": str(last.version), "errata-settled": str(last.settled)}
        if any(choice.last.outcome for choice in self.choices):
            headers["errata-edits"] = ", ".join(
                json.dumps(edit)[1:-1] for edit in dict.fromkeys(spoken)
            )
        return headers

    def whole(self) -> Answer:
        """Return the answer, all of it."""
        choices = [self._choice(index, choice) for index, choice in enumerate(self.choices)]
        return self._answer("chat.completion" if self.chat else "text_completion", choices)

    def chunk(self, index: int, piece: Piece, is_first: bool) -> Answer:
        """Return what is new of a choice."""
        part = Choice(piece.text, piece.choices, piece)
        choice = self._choice(index, part, role="assistant" if is_first else None)
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._answer(kind, [choice], with_usage=False)

    def last_chunk(self) -> Answer:
        """Return the usage, as a piece without choices."""
        return self._answer("chat.completion.chunk" if self.chat else "text_completion", [])

    def _answer(self, kind: str, choices: list[dict[str, Any]], with_usage: bool = True) -> Answer:
        return Answer(
            id=self.id,
            object=kind,
            created=self.created,
            model=self.request.model,
            choices=choices,
            usage=self.usage if with_usage else None,
            system_fingerprint=f"errata-{self.choices[0].last.version}",
        )

    def _choice(self, index: int, choice: Choice, role: str | None = "assistant") -> dict[str, Any]:
        last = choice.last
        outcome = last.outcome
        spoke = {
            "outcome": outcome.name if outcome else None,
            "edits": list(outcome.edit_ids) if outcome else [],
            "settled": last.settled,
        }
        found: dict[str, Any] = {"index": index, "finish_reason": last.finish, "errata": spoke}
        wanted = self.request.alternatives is not None
        if not self.chat:
            return found | {
                "text": choice.text,
                "logprobs": self._token_logprobs(choice.tokens) if wanted else None,
            }
        message = {"content": choice.text} | ({"role": role} if role else {})
        logprobs = {"content": [self._chat_logprob(token) for token in choice.tokens]}
        key = "delta" if self.request.stream else "message"
        return found | {key: message, "logprobs": logprobs if wanted else None}

    def _text(self, token: int) -> str:
        return str(self.service.engine.lm.tokenizer.decode([token]))

    def _chat_logprob(self, token: TokenChoice) -> dict[str, Any]:
        def one(token_id: int, logprob: float | None) -> dict[str, Any]:
            text = self._text(token_id)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        return one(token.id, token.logprob) | {"top_logprobs": [one(*each) for each in token.top]}

    def _token_logprobs(self, tokens: Sequence[TokenChoice]) -> dict[str, Any]:
        texts = [self._text(token.id) for token in tokens]
        offsets = [sum(map(len, texts[:place])) for place in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._text(each): value for each, value in token.top} for token in tokens
            ],
            "text_offset": offsets,
        }
