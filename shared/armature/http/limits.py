"""How much a request may send. A body that is too large is refused while it arrives, so memory stays flat."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from armature.errors import PayloadTooLarge
from armature.http.errors import error_response


class BodyLimitMiddleware:
    """Refuse bodies beyond a number of bytes; ``by_path`` lifts the limit for single paths, such as uploads.

    FastAPI's own ``max_body_size`` answers a declared length that is too large in plain text, outside of the envelope.
    """

    def __init__(self, app: ASGIApp, default: int, by_path: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._default = default
        self._by_path = by_path or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(scope["path"], self._default)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            answer = error_response(PayloadTooLarge(f"the body must not exceed {limit} bytes"))
            await answer(scope, receive, send)
            return
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413)  # the one kind that FastAPI's body readers let through unchanged
            return message

        await self._app(scope, receive_within_limit, send)
