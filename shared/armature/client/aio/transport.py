"""Sends calls with the API key, retries them, and raises errors as exceptions."""

from __future__ import annotations

from asyncio import sleep
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import httpx

from armature.client.errors import connection_error, status_error
from armature.client.wire import Call, V, pause_before_retry, read
from armature.contracts.base import View
from armature.contracts.pages import Page

Item = TypeVar("Item", bound=View)


class AsyncTransport:
    """Sender of calls to one service with one key.

    Args:
        http: Connection pool; its base URL ends in ``/v1/``.
        max_retries: Maximum number of retries of a call.
        timeout: Seconds; None keeps the timeout of ``http``.
    """

    def __init__(self, http: httpx.AsyncClient, max_retries: int, timeout: float | None = None) -> None:
        self._http, self._max_retries = http, max_retries
        self._options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}

    async def send(self, call: Call) -> httpx.Response:
        """Send a call, with retries, and return its 2xx answer.

        Raises:
            APIStatusError: The last answer is not 2xx.
            APIConnectionError: The last attempt got no answer.
        """
        call = call.repeatable()
        for attempt in range(1, self._max_retries + 2):
            last = attempt > self._max_retries
            try:
                response = await self._http.request(**call.arguments(), **self._options)
            except httpx.TransportError as error:
                if last:
                    raise connection_error(error) from error
                pause = pause_before_retry(attempt, None)
            else:
                if response.is_success:
                    return response
                pause = pause_before_retry(attempt, response)
                if last or pause is None:
                    raise status_error(response)
            rewind(call)
            await sleep(pause or 0.0)
        raise AssertionError("the last attempt returns or raises")

    async def get(self, view: type[V], method: str, path: str, **details: Any) -> V:
        """Send a call and parse its answer as a view."""
        return read(view, await self.send(Call(method, path, **details)))

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[httpx.Response]:
        """Open a streamed answer, without retries.

        Raises:
            APIStatusError, APIConnectionError: As :meth:`send`; the connection may also break later.
        """
        try:
            async with self._http.stream(**call.repeatable().arguments(), **self._options) as response:
                if not response.is_success:
                    await response.aread()
                    raise status_error(response)
                yield response
        except httpx.TransportError as error:
            raise connection_error(error) from error


class AsyncPages(Generic[Item]):
    """A list that is fetched page by page during iteration."""

    def __init__(self, transport: AsyncTransport, view: type[Item], path: str, **params: Any) -> None:
        self._transport, self._view, self._path, self._params = transport, view, path, params

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Iterate over all items."""
        async for page in self.pages():
            for item in page.data:
                yield item

    async def pages(self) -> AsyncIterator[Page[Item]]:
        """Iterate over all pages."""
        after: Any = self._params.get("after")
        while True:
            call = Call("GET", self._path, params={**self._params, "after": after})
            page = read(Page[self._view], await self._transport.send(call))  # type: ignore[name-defined]
            yield page
            if not page.has_more:
                return
            after = page.last_id


def rewind(call: Call) -> None:
    """Rewind the files of a call for the next attempt."""
    for _, content in (call.files or {}).values():
        if hasattr(content, "seek"):
            content.seek(0)
