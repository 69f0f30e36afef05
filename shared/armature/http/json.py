"""Strict JSON bodies for FastAPI routes, parsed by :func:`armature.strict_json.parse_json`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from armature.errors import ArmatureError, UnsupportedMediaType
from armature.strict_json import parse_json

_JSON = "application/json"
_UNREADABLE = object()


class _StrictRequest(Request):
    """A request that keeps the error of its body, so that authentication is checked first."""

    body_error: ArmatureError | None = None

    async def json(self) -> Any:
        try:
            return await run_in_threadpool(parse_json, await self.body(), whole_floats=False)
        except ArmatureError as error:
            self.body_error = error
            return _UNREADABLE  # which no model accepts


class StrictJSONRoute(APIRoute):
    """A route that parses its body strictly and refuses another content type with 415.

    FastAPI reads the body before it resolves dependencies, so an error in the body is held back until the dependencies,
    authentication among them, have passed.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route's handler so that it receives the strict request."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            strict = _StrictRequest(request.scope, request.receive)
            try:
                return await handle(strict)
            except RequestValidationError as error:
                if strict.body_error is not None:
                    raise strict.body_error from None
                if self.body_field is not None and content_type(request) != _JSON:
                    raise UnsupportedMediaType(f"send {_JSON}") from None
                raise error

        return handle_strictly


def content_type(request: Request) -> str:
    """Return the request's content type in lower case, without parameters."""
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    return header.get_content_type()
