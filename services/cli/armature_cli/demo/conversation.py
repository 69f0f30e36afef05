"""The demo's client of the decoder: plain HTTP on the routes of OpenAI's clients."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import Any

import httpx

from armature.contracts.answers import ChatCompletionChunk, ModelView
from armature.contracts.pages import Page

_POLL_SECONDS = 0.2


class ModelNotServed(TimeoutError):
    """The decoder did not have a model ready in time."""


class Conversation:
    """A client of the decoder with one tenant's key; a context manager."""

    def __init__(self, decoder_url: str, api_key: str) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=f"{decoder_url}/v1/", headers=headers, timeout=60)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def wait_for(self, model: str, version_digest: str, seconds: float = 60.0) -> None:
        """Return once the decoder has this version of the model loaded.

        Raises:
            ModelNotServed: It has not after ``seconds``; the message has the state of the model.
        """
        deadline, seen = time.monotonic() + seconds, "nothing"
        while time.monotonic() < deadline:
            answer = self._http.get("models")
            if answer.is_success:  # 401 until the decoder has read the tenant's key
                models = {entry.id: entry for entry in Page[ModelView].model_validate_json(answer.content).data}
                found = models.get(model)
                if found and found.root == version_digest and found.state == "ready":
                    return
                seen = found.state if found else f"only {', '.join(models) or 'no model'}"
            time.sleep(_POLL_SECONDS)
        raise ModelNotServed(f"the decoder does not serve {model} after {seconds:g} s; it shows {seen}")

    def ask(self, model: str, prompt: str, **options: Any) -> str:
        """Send one user message and return the answer, which is streamed.

        ``options`` are fields of the request, guidance included.
        """
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True, **options}
        answer = ""
        with self._http.stream("POST", "chat/completions", json=body) as response:
            if response.is_error:
                response.read()
                raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == line or data == "[DONE]":
                    continue
                if "error" in json.loads(data):
                    raise httpx.RemoteProtocolError(data, request=response.request)
                chunk = ChatCompletionChunk.model_validate_json(data)
                answer += "".join(choice.delta.content or "" for choice in chunk.choices)
        return answer
