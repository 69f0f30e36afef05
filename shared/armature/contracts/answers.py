"""Responses of a served model: OpenAI's completion shapes, with the guidance that was applied."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from armature.contracts.base import Name, Sha256, UnixSeconds, View
from armature.contracts.preferences import AttributeName, SafeSetMode
from armature.contracts.sda import SdaApplied

FinishReason = Literal["stop", "length"]
LEAST_LOGPROB = -9999.0
"""The log-probability of an impossible token: JSON has no infinity, and OpenAI's API uses this number."""


class Usage(View):
    """Token counts; ``total_tokens`` is their sum."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Alignment(View):
    """The profile version and guidance that were applied to the request."""

    profile: Name
    alias: Name
    version: int
    base_digest: Sha256
    harm_vector_digest: Sha256 | None
    harm_scale: float
    arm_digest: Sha256 | None
    preference: dict[AttributeName, float] | None = Field(description="weights summing to 1; null without an ARM")
    guidance_weight: float
    safe_set_delta: float | None
    safe_set_mode: SafeSetMode | None = Field(None, description="null without a safe set")
    sda: SdaApplied | None = Field(None, description="null without an instruction, or at strength 0")


class LogprobParts(View):
    """A token's log-probabilities under the guided distribution and under the two it combines."""

    guided: float
    safe: float
    arm: float | None = Field(description="null without guidance")


class TokenLogprob(View):
    """A token and its log-probability under the guided distribution, before temperature and filters."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TokenLogprob):
    """A chosen token and the most likely ones at its position."""

    top_logprobs: list[TokenLogprob]
    parts: LogprobParts | None = Field(None, description="only with logprob_parts")


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
    text_offset: list[int] = Field(description="offset of each token in the concatenation of the tokens' texts")
    parts: list[LogprobParts | None] | None = Field(None, description="only with logprob_parts")


class AssistantMessage(View):
    """The message that the model generated."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(View):
    """One of the ``n`` answers."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None


class Delta(View):
    """The text that a chunk appends to an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(View):
    """A chunk's part of one answer."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None


class TextChoice(View):
    """A continuation, or a chunk's part of one."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: TextLogprobs | None = None


class Answer(View):
    """The fields of every response and chunk."""

    id: str
    created: UnixSeconds
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    alignment: Alignment | None = Field(None, description="in a response, or in the first chunk of a stream")


class ChatCompletion(Answer):
    """The response of ``POST /v1/chat/completions``."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatCompletionChunk(Answer):
    """One server-sent event of a chat stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class Completion(Answer):
    """The response of ``POST /v1/completions``, and each event of its stream."""

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
    state: str = Field(description="state of the bundle in this decoder")
    reason: str | None = Field(None, description="why the bundle is `failed`, or `absent` although it was to be loaded")
    attributes: list[AttributeName]
