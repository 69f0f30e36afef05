"""Limits on the size and slowness of a request, enforced while it arrives, so memory stays bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from armature.errors import ArmatureError, HeadersTooLarge, PayloadTooLarge
from armature.http.errors import error_response

MAX_HEADER_BYTES = 16 * 1024


@dataclass(frozen=True)
class BodyLimits:
    """The largest request body in bytes: a default, and exceptions for single paths such as uploads."""

    default: int
    by_path: Mapping[str, int] = field(default_factory=dict)


class RequestLimitMiddleware:
    """ASGI middleware that refuses too large headers and bodies, and bodies that arrive too slowly.

    A body may take ``patience`` seconds, and longer only while it averages ``least_rate`` bytes a second: one rule for
    a line of JSON and for an upload of gigabytes. FastAPI's own ``max_body_size`` refuses a declared length in plain
    text, not in the envelope.

    Args:
        app: The wrapped app.
        limits: The largest bodies.
        patience: Seconds that any body may take.
        least_rate: Bytes per second that a longer one has to average.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits, patience: float = 20.0, least_rate: float = 1024.0) -> None:
        self._app = app
        self._limits = limits
        self._patience = patience
        self._least_rate = least_rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.by_path.get(scope["path"], self._limits.default)
        refusal = _refuse_headers(scope, limit)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive, limit), send)

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        received, waited, complete = 0, 0.0, False

        async def receive_bounded() -> Message:
            nonlocal received, waited, complete
            if complete:  # only http.disconnect can follow, at any time
                return await receive()
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._patience + received / self._least_rate - waited):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408) from None
            waited += time.monotonic() - started
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                raise HTTPException(413)  # FastAPI's body readers let only HTTPException through unchanged
            return message

        return receive_bounded


def _refuse_headers(scope: Scope, limit: int) -> ArmatureError | None:
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        return HeadersTooLarge(f"the headers must not exceed {MAX_HEADER_BYTES} bytes")
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        return PayloadTooLarge(f"the body must not exceed {limit} bytes")
    return None
