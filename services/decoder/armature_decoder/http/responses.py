"""OpenAI's responses, whole or as the chunks of a stream, made from the pieces of a generation."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from armature.contracts.answers import (
    Alignment,
    Answer,
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChoiceLogprobs,
    Completion,
    Delta,
    FinishReason,
    TextChoice,
    TextLogprobs,
    Usage,
)
from armature_decoder.generation import Piece
from armature_decoder.http.token_reports import TokenReport, chat_logprobs, text_logprobs


@dataclass
class CollectedChoice:
    """One choice of a whole response, put together from its pieces."""

    text: str = ""
    finish_reason: FinishReason = "stop"
    reports: list[TokenReport] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.text += piece.text
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.reports += piece.reports


@dataclass(frozen=True)
class ResponseHeading:
    """The fields that every chunk of one response repeats, and its alignment."""

    model: str
    system_fingerprint: str
    alignment: Alignment
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self) -> Mapping[str, Any]:
        """Return the fields of :class:`Answer` that are the same in every chunk."""
        return {
            "id": self.id,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


class ChatResponseShape:
    """Makes ``chat.completion`` and ``chat.completion.chunk`` objects."""

    id_prefix = "chatcmpl"

    def whole(self, heading: ResponseHeading, choices: Sequence[CollectedChoice], usage: Usage) -> Answer:
        """Make the whole response."""
        listed = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=choice.text),
                finish_reason=choice.finish_reason,
                logprobs=_chat(choice.reports),
            )
            for index, choice in enumerate(choices)
        ]
        return ChatCompletion(**heading.fields(), choices=listed, usage=usage, alignment=heading.alignment)

    def opening(self, heading: ResponseHeading, choices: int) -> Answer:
        """Make the first chunk: the role, and the alignment."""
        role = Delta(role="assistant", content="")
        listed = [ChatChunkChoice(index=index, delta=role) for index in range(choices)]
        return ChatCompletionChunk(**heading.fields(), choices=listed, alignment=heading.alignment)

    def chunk(self, heading: ResponseHeading, piece: Piece) -> Answer:
        """Make the chunk of one piece."""
        delta = Delta(content=piece.text or None)
        choice = ChatChunkChoice(
            index=piece.index, delta=delta, finish_reason=piece.finish_reason, logprobs=_chat(piece.reports)
        )
        return ChatCompletionChunk(**heading.fields(), choices=[choice])

    def closing(self, heading: ResponseHeading, usage: Usage) -> Answer:
        """Make the last chunk, which has the usage and no choices."""
        return ChatCompletionChunk(**heading.fields(), choices=[], usage=usage)


class TextResponseShape:
    """Makes ``text_completion`` objects, whole and as chunks."""

    id_prefix = "cmpl"

    def whole(self, heading: ResponseHeading, choices: Sequence[CollectedChoice], usage: Usage) -> Answer:
        """Make the whole response."""
        listed = [
            TextChoice(
                index=index, text=choice.text, finish_reason=choice.finish_reason, logprobs=_text(choice.reports)
            )
            for index, choice in enumerate(choices)
        ]
        return Completion(**heading.fields(), choices=listed, usage=usage, alignment=heading.alignment)

    def opening(self, heading: ResponseHeading, choices: int) -> Answer:
        """Make the first chunk: the alignment."""
        listed = [TextChoice(index=index, text="") for index in range(choices)]
        return Completion(**heading.fields(), choices=listed, alignment=heading.alignment)

    def chunk(self, heading: ResponseHeading, piece: Piece) -> Answer:
        """Make the chunk of one piece."""
        logprobs = _text(piece.reports, piece.offset)
        choice = TextChoice(index=piece.index, text=piece.text, finish_reason=piece.finish_reason, logprobs=logprobs)
        return Completion(**heading.fields(), choices=[choice])

    def closing(self, heading: ResponseHeading, usage: Usage) -> Answer:
        """Make the last chunk, which has the usage and no choices."""
        return Completion(**heading.fields(), choices=[], usage=usage)


def _chat(reports: Sequence[TokenReport]) -> ChoiceLogprobs | None:
    content = chat_logprobs(reports)
    return ChoiceLogprobs(content=content) if content else None


def _text(reports: Sequence[TokenReport], offset: int = 0) -> TextLogprobs | None:
    return text_logprobs(reports, offset) if reports else None


ResponseShape = ChatResponseShape | TextResponseShape


def new_response_id(shape: ResponseShape) -> str:
    """Make a random id such as ``chatcmpl-...``."""
    return f"{shape.id_prefix}-{secrets.token_hex(12)}"
