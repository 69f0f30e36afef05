"""Generation requests: OpenAI's chat and text completions, with Armature's fields for guidance.

Only the fields listed here are accepted. A field of OpenAI's API without effect here is refused by name instead of
being ignored, unless it is harmless (``user``) or has its neutral value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from armature.contracts.base import Contract, FieldError, Seed
from armature.contracts.preferences import Preference, SafeSetMode
from armature.contracts.sda import SdaRequest
from armature.errors import InvalidRequest

MAX_CHOICES = 8
MAX_MESSAGES = 1024
MAX_PROMPTS = 64
MAX_LOGPROBS = 20

UNSUPPORTED_FIELDS = frozenset(
    {
        "audio", "best_of", "chat_template", "chat_template_kwargs", "function_call", "functions",
        "modalities", "parallel_tool_calls", "prediction", "reasoning_effort", "service_tier", "store", "suffix",
        "tool_choice", "tools", "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Fields of OpenAI's API (or of compatible servers) that would change the answer and are not supported."""

Zero = Annotated[float, Field(ge=0, le=0)]
StopString = Annotated[str, Field(min_length=1, max_length=64)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogitBias = dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")], Annotated[float, Field(ge=-100, le=100)]]
"""Bias in nats by token id."""

_BY_FORM = Discriminator(lambda value: "list" if isinstance(value, list) else "string")
"""Discriminator of fields that take a string or a list: errors are reported for the form that was sent."""


Stop = Annotated[
    Annotated[StopString, Tag("string")] | Annotated[list[StopString], Field(max_length=4), Tag("list")], _BY_FORM
]


class StreamOptions(Contract):
    """Options of a stream. ``include_usage`` adds a last chunk with the usage; padding is never sent."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class TextFormat(Contract):
    """The only response format that is supported."""

    type: Literal["text"]


def _form_of_prompt(value: Any) -> str:
    if not isinstance(value, list):
        return "one text"
    first = value[0] if value else ""
    return "token lists" if isinstance(first, list) else "texts" if isinstance(first, str) else "tokens"


Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[TokenId], Field(min_length=1)]
Prompts = Annotated[
    Annotated[Text, Tag("one text")]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS), Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS), Tag("token lists")],
    Discriminator(_form_of_prompt),
]
"""Text or token ids, one prompt or several."""


class GenerationRequest(Contract):
    """The fields shared by chat and text completions; those of the second block are Armature's own.

    They override the profile's defaults; null means the default.
    """

    model: str = Field(min_length=1, max_length=256, description="profile, or profile@alias")
    temperature: float | None = Field(None, ge=0, le=2, description="default 1; 0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="0: off")
    min_p: float | None = Field(None, ge=0, lt=1)
    logit_bias: LogitBias | None = Field(None, max_length=300, description="adds no token to the safe set")
    seed: Seed | None = Field(None, description="same seed, same request, same model: same answer")
    stop: Stop | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=512, description="gets the same version throughout a canary split")
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None

    preference: Preference | None = Field(None, max_length=64, description="weights by attribute name")
    guidance_weight: float | None = Field(None, ge=0, le=32, description="0: the safe base exactly")
    safe_set_delta: float | None = Field(None, ge=0, le=100, description="nats below the safe base's best token")
    safe_set_mode: SafeSetMode | None = Field(None, description="strict: the ARM's best token inside the safe set")
    harm_scale: float | None = Field(None, ge=0, le=100, description="one of the scales the profile is served at")
    sda: SdaRequest | None = Field(None, description="steering by an instruction, if the profile has that stage")
    logprob_parts: bool | None = Field(None, description="with logprobs: also log pi_safe and log pi_arm")

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
            raise FieldError("stream_options", "needs stream: true")
        return self

    @model_validator(mode="after")
    def _parts_need_logprobs(self) -> GenerationRequest:
        if self.logprob_parts and self.logprob_count is None:
            raise FieldError("logprob_parts", "needs logprobs")
        return self

    @property
    def logprob_count(self) -> int | None:
        """Number of most likely tokens to report beside each chosen one; None: no log-probabilities."""
        return None

    @property
    def token_limit(self) -> int | None:
        """The most tokens of an answer; None: as many as fit."""
        return None

    @property
    def echoes(self) -> bool:
        """Whether each answer begins with its prompt."""
        return False

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities are reported for the echoed prompt too."""
        return self.echoes and self.logprob_count is not None

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class TextPart(Contract):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[TextPart], Field(min_length=1, max_length=64), Tag("list")], _BY_FORM
]


class ChatMessage(Contract):
    """A message. ``developer`` is OpenAI's newer name of ``system``."""

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
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: TextFormat | None = None

    @property
    def logprob_count(self) -> int | None:
        """See :attr:`GenerationRequest.logprob_count`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        """See :attr:`GenerationRequest.token_limit`."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise FieldError("max_completion_tokens", "differs from max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("top_logprobs", "needs logprobs: true")
        if self.messages[-1].role == "assistant":
            raise FieldError("messages", "the last message must not be the assistant's")
        return self


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``: prompts or token ids, continued without a chat template."""

    prompt: Prompts
    max_tokens: int | None = Field(16, ge=0, le=2**31 - 1, description="0 with echo: the prompts are only scored")
    echo: bool | None = Field(None, description="the answer starts with the prompt; logprobs then cover the prompt too")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _generates_or_scores(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise FieldError("max_tokens", "0 needs echo: true")
        return self

    @property
    def logprob_count(self) -> int | None:
        """See :attr:`GenerationRequest.logprob_count`."""
        return self.logprobs

    @property
    def token_limit(self) -> int | None:
        """See :attr:`GenerationRequest.token_limit`."""
        return self.max_tokens

    @property
    def echoes(self) -> bool:
        """See :attr:`GenerationRequest.echoes`."""
        return bool(self.echo)

    @property
    def prompts(self) -> dict[str, str | list[int]]:
        """The prompts by the path of the field that holds each."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return {"prompt": prompt}
        return {f"prompt.{index}": item for index, item in enumerate(prompt)}
