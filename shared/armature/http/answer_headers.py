"""Headers of every response: the security headers, and those that a dependency adds."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STATE = "answer_headers"
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def add_headers(request: Request, headers: Mapping[str, str]) -> None:
    """Add ``headers`` to the response of ``request``, whatever kind of response the route returns."""
    request.scope.setdefault(_STATE, {}).update(headers)


class AnswerHeadersMiddleware:
    """ASGI middleware that completes the headers of every response; a header set by the route stays.

    Paths of ``unguarded`` get no Content-Security-Policy: they are pages that load scripts.
    """

    def __init__(self, app: ASGIApp, unguarded: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._unguarded = unguarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_STATE] = {}

        async def send_completed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {**_ALWAYS, **scope[_STATE]}.items():
                    if name != "Content-Security-Policy" or scope["path"] not in self._unguarded:
                        headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_completed)
