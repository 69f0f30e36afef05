"""OpenAI's completion shapes, with three fields of our own that steer a request.

What a request may hold is listed here and nothing else is accepted: a field of OpenAI's that this platform does not
act on is refused by name instead of being ignored, unless it is harmless (``user``) or holds its neutral value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from armature.contracts.base import Contract, Name, Seed, Sha256, UnixSeconds, View
from armature.contracts.preferences import AttributeName, Preference
from armature.errors import InvalidRequest

MAX_CHOICES = 8
MAX_MESSAGES = 1024

UNSUPPORTED_FIELDS = frozenset(
    {
        "audio", "best_of", "chat_template", "chat_template_kwargs", "function_call", "functions", "logit_bias",
        "modalities", "parallel_tool_calls", "prediction", "reasoning_effort", "service_tier", "store", "suffix",
        "tool_choice", "tools", "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Fields of OpenAI's (or of servers that speak its shape) that change the answer and that we do not act on."""

Zero = Annotated[float, Field(ge=0, le=0)]
StopString = Annotated[str, Field(min_length=1, max_length=64)]
FinishReason = Literal["stop", "length"]

_BY_FORM = Discriminator(lambda value: "list" if isinstance(value, list) else "string")
"""For fields that take a string or a list: what is wrong is told of the form that was sent."""


Stop = Annotated[
    Annotated[StopString, Tag("string")] | Annotated[list[StopString], Field(max_length=4), Tag("list")], _BY_FORM
]


class StreamOptions(Contract):
    """``include_usage`` adds a last chunk with the usage block. Obfuscation padding is never sent."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class TextFormat(Contract):
    """The one response format there is."""

    type: Literal["text"]


class GenerationRequest(Contract):
    """What chat and text completions share. ``preference``, ``guidance_weight`` and ``safe_set_delta`` are ours.

    They override the profile's defaults; null means the default.
    """

    model: str = Field(min_length=1, max_length=256, description="profile, or profile@alias")
    temperature: float | None = Field(None, ge=0, le=2, description="default 1; 0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="0: off")
    min_p: float | None = Field(None, ge=0, lt=1)
    seed: Seed | None = Field(None, description="same seed, same request, same model: same answer")
    stop: Stop | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512, description="kept on one version while an alias is split")
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None

    preference: Preference | None = Field(None, max_length=64, description="weights by attribute name")
    guidance_weight: float | None = Field(None, ge=0, le=32, description="0: the safe base exactly")
    safe_set_delta: float | None = Field(None, ge=0, le=100, description="nats below the safe base's best token")

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name in value.keys() & UNSUPPORTED_FIELDS:
            if value[name] is not None:
                raise InvalidRequest(f"{name} is not supported here", param=name, code="unsupported_field")
        return {name: field for name, field in value.items() if name not in UNSUPPORTED_FIELDS}

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class TextPart(Contract):
    """A piece of a message. Only text is understood."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[TextPart], Field(min_length=1, max_length=64), Tag("list")], _BY_FORM
]


class ChatMessage(Contract):
    """One turn. ``developer`` is OpenAI's newer word for ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = Field(None, max_length=64, description="accepted and not used")

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatCompletionRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: TextFormat | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.messages[-1].role == "assistant":
            raise ValueError("the last message must not be the assistant's")
        return self


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``: one prompt, continued as it stands."""

    prompt: str = Field(min_length=1)
    max_tokens: int | None = Field(16, ge=1, le=2**31 - 1)
    echo: Literal[False] | None = None
    logprobs: None = Field(None, description="only chat completions return log-probabilities")


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


class TokenLogprob(View):
    """A token and its log-probability under the guided distribution, before temperature and filters."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TokenLogprob):
    """A chosen token, with the most likely ones at its position."""

    top_logprobs: list[TokenLogprob]


class ChoiceLogprobs(View):
    """Log-probabilities of a choice, token by token."""

    content: list[ContentLogprob]


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
    logprobs: None = None


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
