"""A body that arrives too slowly is refused, however it is sent; a long one at a fair rate is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from armature.http.limits import BodyLimits, RequestLimitMiddleware

SCOPE: dict[str, Any] = {"type": "http", "path": "/", "headers": []}


async def read_all(_: Any, receive: Any, __: Any) -> None:
    while (await receive()).get("more_body"):
        pass


def send_body(pieces: list[bytes], pause: float, patience: float, least_rate: float = 1024) -> None:
    """A client that waits before each piece."""

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause)
            body = pieces.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(pieces)}

        async def send(_: Any) -> None:
            raise AssertionError("nothing is to be answered here")

        middleware = RequestLimitMiddleware(read_all, BodyLimits(10**9), patience, least_rate)
        await middleware(SCOPE, receive, send)

    asyncio.run(run())


@pytest.mark.bad_input(16)
def test_a_body_slower_than_the_minimum_is_a_408() -> None:
    with pytest.raises(HTTPException) as refused:
        send_body([b"x"] * 1000, pause=0.02, patience=0.1)
    assert refused.value.status_code == 408


def test_a_body_that_brings_enough_may_take_long() -> None:
    send_body([b"x" * 100] * 20, pause=0.01, patience=0.1, least_rate=10)


def test_after_the_body_there_is_no_deadline() -> None:
    async def wait_for_the_end(_: Any, receive: Any, __: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    async def run() -> None:
        messages = [{"type": "http.request", "body": b"{}", "more_body": False}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, Any]:
            if len(messages) == 1:
                await asyncio.sleep(0.2)
            return messages.pop(0)

        async def send(_: Any) -> None: ...

        await RequestLimitMiddleware(wait_for_the_end, BodyLimits(10**9), patience=0.05)(SCOPE, receive, send)

    asyncio.run(run())
