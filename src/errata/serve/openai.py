"""OpenAI's requests and answers, as far as they are served: what is not known is refused."""

from __future__ import annotations

import time
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field, field_validator

from errata.errors import UsageError
from errata.serve.sampling import MOST_LOGPROBS, Sampling
from errata.serve.schemas import Strict

MOST_CHOICES = 32
"""Answers in one request: prompts times `n`."""
COMPLETION_LENGTH = 16
"""Tokens of a completion where the request does not say; OpenAI's default."""


class StreamOptions(Strict):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False


class AnswerRequest(Strict):
    """What requests for completions and for chat completions have in common."""

    model: str = Field(description="One of those that /v1/models lists.")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, float] = Field({}, max_length=1000)
    user: str | None = Field(None, description="Not used.")
    metadata: dict[str, str] | None = Field(None, description="Not used.")
    store: bool | None = Field(None, description="Not used: nothing of a request is kept.")

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 16:
            raise ValueError("at most 16 texts may stop an answer")
        return stop

    @property
    def alternatives(self) -> int | None:
        """How many alternatives are told per token; None: no log-probabilities."""
        return None

    @property
    def length(self) -> int | None:
        """The tokens after which an answer is cut; None: where the context ends."""
        return self.max_tokens

    def sampling(self, room: int | None, vocabulary: int, number: int) -> Sampling:
        """Return the settings of one answer.

        Args:
            room: tokens that an answer may have; None: no limit.
            vocabulary: the model's number of tokens.
            number: of the answers to this prompt, from 0; it is added to the seed.

        Raises:
            UsageError: a bias is of a token that the model does not have.
        """
        if wrong := [token for token in self.logit_bias if not 0 <= token < vocabulary]:
            raise UsageError(
                f"logit_bias names the token {wrong[0]}; the model's are 0 to {vocabulary - 1}."
            )
        most = self.length or room or 4096
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=min(most, room or most),
            temperature=self.temperature,
            top_p=self.top_p,
            seed=None if self.seed is None else (self.seed + number) % 2**63,
            stops=stops,
            top_logprobs=self.alternatives,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=self.logit_bias,
        )


class CompletionRequest(AnswerRequest):
    """A text to continue, or several."""

    prompt: str | list[int] | list[str] | list[list[int]] = Field(max_length=2_000_000)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @property
    def alternatives(self) -> int | None:
        """See there."""
        return self.logprobs

    @property
    def length(self) -> int | None:
        """See there; OpenAI's default is short."""
        return self.max_tokens or COMPLETION_LENGTH

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, as text or token ids.

        Raises:
            UsageError: there is none.
        """
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if not given or [] in given:
            raise UsageError("'prompt' is empty; give a text, token ids, or a list of either.")
        if isinstance(given[0], int):
            return [[int(token) for token in given]]
        return list(given)


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, description="Not used.")
    refusal: None = None

    @property
    def text(self) -> str:
        """Its text, the parts joined."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatRequest(AnswerRequest):
    """A conversation to go on with."""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)

    @property
    def alternatives(self) -> int | None:
        """See there."""
        return self.top_logprobs if self.logprobs else None

    @property
    def length(self) -> int | None:
        """See there."""
        return self.max_completion_tokens or self.max_tokens


class Spoke(BaseModel):
    """Which edits answered: errata's own field in a choice."""

    outcome: str | None = Field(description="`say`, `read`, `main`; null where it is not known.")
    edits: list[str] = Field(description="Ids of the edits that are said, or read.")


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(BaseModel):
    """A completion or a chat completion, whole or a piece of it that is streamed."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage | None = None
    system_fingerprint: str = Field(description="The version of the model that answers.")


class ModelOut(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["errata"] = "errata"


class ModelList(BaseModel):
    """The models that are served: with the edits, and the base model."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


def new_id(kind: str) -> str:
    """Return an id for an answer of a kind."""
    return f"{kind}-{uuid4().hex}"


def now() -> int:
    """Return the seconds since 1970."""
    return int(time.time())
