"""``client.chat.completions`` and ``client.completions``: guided generation in OpenAI's shape."""

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
    """Text completions."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, model: str, prompt: Prompts, **options: Any) -> Completion:
        """Complete a text and return it whole.

        ``options`` are further fields of the route, such as ``preference`` or ``guidance_weight``.

        Raises:
            TypeError: ``stream`` is true; use :meth:`stream`.
        """
        body = {"model": model, "prompt": prompt, **options}
        return self._transport.get(Completion, "POST", "completions", json=_whole(body))

    def stream(self, *, model: str, prompt: Prompts, **options: Any) -> Iterator[Completion]:
        """Complete a text and yield its pieces as they are generated.

        Raises:
            APIStatusError: The request was refused, or failed in the middle of the stream.
            APIConnectionError: The stream ended early.
        """
        return _stream(self._transport, Completion, "completions", {"model": model, "prompt": prompt, **options})


class ChatCompletions:
    """Chat completions."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, model: str, messages: Iterable[Mapping[str, Any]], **options: Any) -> ChatCompletion:
        """Answer a dialogue whole; ``options`` and errors as in :meth:`Completions.create`."""
        body = {"model": model, "messages": list(messages), **options}
        return self._transport.get(ChatCompletion, "POST", "chat/completions", json=_whole(body))

    def stream(
        self, *, model: str, messages: Iterable[Mapping[str, Any]], **options: Any
    ) -> Iterator[ChatCompletionChunk]:
        """Answer a dialogue piece by piece; errors as in :meth:`Completions.stream`."""
        body = {"model": model, "messages": list(messages), **options}
        return _stream(self._transport, ChatCompletionChunk, "chat/completions", body)


class Chat:
    """``client.chat``."""

    def __init__(self, transport: Transport) -> None:
        self.completions = ChatCompletions(transport)


def _whole(body: dict[str, Any]) -> dict[str, Any]:
    if body.get("stream"):
        raise TypeError("create() returns whole answers; stream() takes the same arguments and yields pieces")
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
