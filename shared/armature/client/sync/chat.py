"""``client.chat.completions`` and ``client.completions``: guided generation, as OpenAI's package does it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx_sse

from armature.client.errors import APIConnectionError, stream_error
from armature.client.sync.transport import Transport
from armature.client.wire import Call, V
from armature.contracts.answers import ChatCompletion, ChatCompletionChunk, Completion
from armature.contracts.errors import ErrorObject
from armature.contracts.generation import Prompts

_DONE = "[DONE]"


class Completions:
    """Continuing a text."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, model: str, prompt: Prompts, **options: Any) -> Completion:
        """A text, whole. ``options`` are the route's fields, such as ``preference`` or ``guidance_weight``.

        Raises:
            TypeError: ``stream`` is asked for, which is a method of its own here.
        """
        body = {"model": model, "prompt": prompt, **options}
        return self._transport.get(Completion, "POST", "completions", json=_whole(body))

    def stream(self, *, model: str, prompt: Prompts, **options: Any) -> Iterator[Completion]:
        """A text as it is written.

        Raises:
            APIStatusError: Before the first piece, or in the middle.
            APIConnectionError: The stream broke off.
        """
        return _stream(self._transport, Completion, "completions", {"model": model, "prompt": prompt, **options})


class ChatCompletions:
    """Answering a dialogue."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, model: str, messages: Iterable[Mapping[str, Any]], **options: Any) -> ChatCompletion:
        """An answer, whole; ``options`` and errors as in :meth:`Completions.create`."""
        body = {"model": model, "messages": list(messages), **options}
        return self._transport.get(ChatCompletion, "POST", "chat/completions", json=_whole(body))

    def stream(
        self, *, model: str, messages: Iterable[Mapping[str, Any]], **options: Any
    ) -> Iterator[ChatCompletionChunk]:
        """An answer as it is written; raises as :meth:`Completions.stream` does."""
        body = {"model": model, "messages": list(messages), **options}
        return _stream(self._transport, ChatCompletionChunk, "chat/completions", body)


class Chat:
    """``client.chat``."""

    def __init__(self, transport: Transport) -> None:
        self.completions = ChatCompletions(transport)


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("stream"):
        raise TypeError("create() answers whole; stream() takes the same arguments and answers piece by piece")
    return body


def _stream(transport: Transport, view: type[V], path: str, body: Mapping[str, Any]) -> Iterator[V]:
    call = Call("POST", path, json={**body, "stream": True})
    with transport.stream(call) as response:
        for message in httpx_sse.EventSource(response).iter_sse():
            if message.data == _DONE:
                return
            if not message.data:
                continue
            data = json.loads(message.data)
            if "error" in data:
                raise stream_error(500, ErrorObject.model_validate(data["error"]))
            yield view.model_validate(data)
    raise APIConnectionError("the stream ended before its last message")
