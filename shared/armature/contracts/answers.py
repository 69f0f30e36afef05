"""What a served model answers: OpenAI's completion shapes, which also say what was applied."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.base import Name, Sha256, UnixSeconds, View
from armature.contracts.preferences import AttributeName, SafeSetMode
from armature.contracts.sda import SdaApplied

FinishReason = Literal["stop", "length"]
LEAST_LOGPROB = -9999.0
"""Stands for the log-probability of what is impossible: JSON has no infinity, and OpenAI's clients know this number."""


class Usage(View):
    """Token counts; ``total_tokens`` is their sum."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Alignment(View):
    """What was really applied to the request, by digest and number."""

    profile: Name
    alias: Name
    version: int
    base_digest: Sha256
    harm_vector_digest: Sha256 | None
    harm_scale: float
    arm_digest: Sha256 | None
    preference: dict[AttributeName, float] | None = Field(description="normalised; null without an ARM")
    guidance_weight: float
    safe_set_delta: float | None
    safe_set_mode: SafeSetMode | None = Field(None, description="null without a safe set")
    sda: SdaApplied | None = Field(None, description="null without an instruction, or at strength 0")


class LogprobParts(View):
    """A token's log-probabilities under the distribution it was drawn from and the two that this was made of."""

    guided: float
    safe: float
    arm: float | None = Field(description="null without guidance")


class TokenLogprob(View):
    """A token and its log-probability under the guided distribution, before temperature and filters."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TokenLogprob):
    """A chosen token, with the most likely ones at its position."""

    top_logprobs: list[TokenLogprob]
    parts: LogprobParts | None = Field(None, description="if logprob_parts asks for them")


class ChoiceLogprobs(View):
    """Log-probabilities of a choice, token by token."""

    content: list[ContentLogprob]


class TextLogprobs(View):
    """Log-probabilities of a continuation in the form of OpenAI's text completions: lists over its tokens.

    The first token of an echoed prompt has none.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="where each token begins, counted in the texts of the tokens")
    parts: list[LogprobParts | None] | None = Field(None, description="if logprob_parts asks for them")


class AssistantMessage(View):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(View):
    """One answer of ``n``."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None


class Delta(View):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(View):
    """A chunk's part of one answer."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None


class TextChoice(View):
    """One continuation, whole or a chunk's part of it."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TextLogprobs | None = None


class Answer(View):
    """What every answer and chunk says of itself."""

    id: str
    created: UnixSeconds
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    alignment: Alignment | None = Field(None, description="in an answer and in the first chunk of a stream")


class ChatCompletion(Answer):
    """The answer of ``POST /v1/chat/completions``."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatCompletionChunk(Answer):
    """One server-sent event of a chat stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class Completion(Answer):
    """The answer of ``POST /v1/completions``, and each event of its stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class ModelView(View):
    """A model as ``GET /v1/models`` lists it: a profile alias of the tenant."""

    id: str
    object: Literal["model"] = "model"
    created: UnixSeconds
    owned_by: str
    root: Sha256 = Field(description="digest of the profile version")
    parent: Sha256 = Field(description="digest of its base model")
    state: str = Field(description="of its bundle in this decoder")
    attributes: list[AttributeName]
