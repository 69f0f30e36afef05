"""Strict JSON bodies for FastAPI routes: what :func:`armature.strict_json.parse_json` refuses is refused."""

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
    """A request that remembers why its body could not be read, so that who asks is checked first."""

    body_error: ArmatureError | None = None

    async def json(self) -> Any:
        try:
            return await run_in_threadpool(parse_json, await self.body(), whole_floats=False)
        except ArmatureError as error:
            self.body_error = error
            return _UNREADABLE  # which no model accepts


class StrictJSONRoute(APIRoute):
    """A route that reads its body strictly, and refuses a body of another content type with 415.

    FastAPI reads the body before it solves dependencies, so a complaint about the body is held back until the
    dependencies, authentication among them, have had their say.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler with the strict request in place."""
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
    """What the request says that its body is, in lower case and without parameters."""
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    return header.get_content_type()
