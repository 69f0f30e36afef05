"""How much a request may send, and how slowly. What is beyond is refused while it arrives, so memory stays flat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from armature.errors import ArmatureError, HeadersTooLarge, PayloadTooLarge
from armature.http.errors import error_response

MAX_HEADER_BYTES = 16 * 1024
_MIN_BYTES_PER_SECOND = 1024


class RequestLimitMiddleware:
    """Refuse headers and bodies that are too large, and bodies that come too slowly.

    A body may take ``patience`` seconds, and longer only while it brings a kilobyte a second: the rule is the same for
    a line of JSON and for an upload of gigabytes. FastAPI's own ``max_body_size`` answers a declared length that is too
    large in plain text, outside of the envelope.

    Args:
        app: What is guarded.
        default: Largest body in bytes.
        by_path: Other sizes for single paths, such as uploads.
        patience: Seconds.
    """

    def __init__(
        self, app: ASGIApp, default: int, by_path: Mapping[str, int] | None = None, patience: float = 20.0
    ) -> None:
        self._app = app
        self._default = default
        self._by_path = by_path or {}
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(scope["path"], self._default)
        refusal = _refuse_headers(scope, limit)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive, limit), send)

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        received, waited, complete = 0, 0.0, False

        async def receive_bounded() -> Message:
            nonlocal received, waited, complete
            if complete:  # what follows is only the news that the client has gone
                return await receive()
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._patience + received / _MIN_BYTES_PER_SECOND - waited):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408) from None
            waited += time.monotonic() - started
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > limit:
                raise HTTPException(413)  # the one kind that FastAPI's body readers let through unchanged
            return message

        return receive_bounded


def _refuse_headers(scope: Scope, limit: int) -> ArmatureError | None:
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        return HeadersTooLarge(f"the headers must not exceed {MAX_HEADER_BYTES} bytes")
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        return PayloadTooLarge(f"the body must not exceed {limit} bytes")
    return None
