"""Models behind OpenAI-compatible endpoints, which the worker's settings name and hold the keys of."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from armature.errors import EndpointUnavailable, InvalidRequest
from armature.settings import EndpointSettings
from armature_worker.context.ports import RecipeContext

_ATTEMPTS = 6
_LONGEST_PAUSE = 60.0
_RETRIED_STATUSES = frozenset({408, 409, 425, 429})
"""Beside every 5xx."""

Dialogue = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Completion:
    """The text of an answer; ``finished`` unless the token limit cut it."""

    text: str
    finished: bool


def open_endpoint(context: RecipeContext, name: str, model: str, param: str) -> ChatEndpoint:
    """Look up an endpoint in the worker's settings.

    Args:
        context: The job's.
        name: The endpoint's name.
        model: The model to ask there.
        param: The spec's field that names the endpoint.

    Raises:
        InvalidRequest: The settings have no such endpoint.
    """
    if name not in context.endpoints:
        known = ", ".join(sorted(context.endpoints)) or "none"
        message = f"this worker's settings have no endpoint {name!r} (ARMATURE_WORKER__ENDPOINTS has {known})"
        raise InvalidRequest(message, param=f"{param}.endpoint")
    return ChatEndpoint(context.endpoints[name], model, param)


class ChatEndpoint:
    """A model at an endpoint.

    Args:
        settings: The endpoint's address, key and limits.
        model: The model's name there.
        param: The spec's field to blame in errors.
        pause: Sleeps for a number of seconds.
    """

    def __init__(
        self, settings: EndpointSettings, model: str, param: str, pause: Callable[[float], object] = time.sleep
    ) -> None:
        self._settings, self._model, self._param, self._pause = settings, model, param, pause

    def complete(self, dialogues: Sequence[Dialogue], options: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """Ask for an answer to each dialogue, several at a time; answers come in the order of the dialogues.

        Raises:
            EndpointUnavailable: No answer after several attempts, or something that is no chat completion.
            InvalidRequest: The endpoint refuses a request, such as an unknown model or a wrong key.
        """
        key = self._settings.api_key.get_secret_value()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = f"{self._settings.url.rstrip('/')}/chat/completions"
        with (
            httpx.Client(headers=headers, timeout=self._settings.timeout) as client,
            ThreadPoolExecutor(self._settings.concurrency) as pool,
        ):
            bodies = [
                {"model": self._model, "messages": [dict(message) for message in dialogue], **option}
                for dialogue, option in zip(dialogues, options, strict=True)
            ]
            return list(pool.map(lambda body: self._ask(client, url, body), bodies))

    def _ask(self, client: httpx.Client, url: str, body: Mapping[str, Any]) -> Completion:
        problem = ""
        for attempt in range(_ATTEMPTS):
            pause = 2.0**attempt
            try:
                response = client.post(url, json=body)
            except httpx.TransportError as error:
                problem = f"does not answer ({type(error).__name__})"
            else:
                if response.is_success:
                    return self._parse(response)
                if response.status_code < 500 and response.status_code not in _RETRIED_STATUSES:
                    raise InvalidRequest(
                        f"the endpoint refuses the request with {response.status_code}: {self._reason(response)}",
                        param=self._param,
                    )
                problem = f"answers with {response.status_code}"
                pause = _asked_pause(response) or pause
            if attempt + 1 < _ATTEMPTS:
                self._pause(min(pause, _LONGEST_PAUSE))
        raise EndpointUnavailable(f"the endpoint {problem}, {_ATTEMPTS} times in a row", param=self._param)

    def _parse(self, response: httpx.Response) -> Completion:
        try:
            choice = response.json()["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError) as error:
            raise EndpointUnavailable("the endpoint's answer is no chat completion", param=self._param) from error
        return Completion(text if isinstance(text, str) else "", reason != "length")

    def _reason(self, response: httpx.Response) -> str:
        """Return the endpoint's own words, shortened, without the key.

        Some endpoints repeat a key that they refuse.
        """
        try:
            words = str(response.json()["error"]["message"])
        except (ValueError, LookupError, TypeError):
            words = response.text
        key = self._settings.api_key.get_secret_value()
        return (words.replace(key, "***") if key else words)[:300]


def _asked_pause(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
