"""One id per request, sent by the client or generated: in the response, the error, every log line."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request being served; None outside a request."""

_ACCEPTED = re.compile(r"[A-Za-z0-9_-]{8,64}")


class RequestIdMiddleware:
    """ASGI middleware that accepts or generates the request's id and binds it to logs and response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        presented = Headers(scope=scope).get(HEADER, "")
        current = presented if _ACCEPTED.fullmatch(presented) else f"req_{secrets.token_hex(12)}"

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = current
            await send(message)

        # Not reset afterwards: the handler of unexpected errors runs outside this middleware and needs the id. Each
        # request has its own context, so nothing leaks.
        request_id.set(current)
        structlog.contextvars.bind_contextvars(request_id=current)
        await self._app(scope, receive, send_with_id)
