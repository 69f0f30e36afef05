"""The error envelope: the body of every response that is not 2xx, in the form of OpenAI's API.

FastAPI's and Starlette's own errors are converted too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import Request

from armature.contracts.base import FieldError
from armature.contracts.errors import ErrorEnvelope, ErrorObject
from armature.errors import (
    ArmatureError,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    MissingField,
    NonFiniteNumber,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    SlowBody,
    UnknownField,
    UnsupportedMediaType,
    ZeroPreference,
)
from armature.http.request_id import HEADER, request_id
from armature.logging import get_logger

ENVELOPE_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorEnvelope, "description": "The request can not be served as it is"},
    "5XX": {"model": ErrorEnvelope, "description": "The platform can not serve the request now"},
}
"""A router's ``responses``: declares the envelope in the OpenAPI document."""

_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_RETRY = {"Retry-After": "1", "x-should-retry": "true"}
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients retry a 409 without this header
_BY_STATUS: dict[int, tuple[type[ArmatureError], str]] = {
    400: (MalformedBody, "the request can not be read"),
    404: (NotFound, "there is no such route"),
    405: (MethodNotAllowed, "the route does not take this method"),
    408: (SlowBody, "the body arrives too slowly"),
    413: (PayloadTooLarge, "the body is too large"),
    415: (UnsupportedMediaType, "the route does not read this content type"),
}
_BY_PYDANTIC_TYPE: dict[str, type[InvalidRequest]] = {
    "extra_forbidden": UnknownField,
    "missing": MissingField,
    "union_tag_not_found": MissingField,
    "finite_number": NonFiniteNumber,
    "zero_preference": ZeroPreference,
}
_TAG_ERRORS = ("union_tag_invalid", "union_tag_not_found")
_Located = tuple[list[str], Mapping[str, Any]]
"""The path of a field and its pydantic error."""
_MAX_TEXT = 500
"""Longest ``message`` and ``param`` of an envelope: both may repeat a field name sent by the client."""


def error_response(error: ArmatureError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Build the response for ``error``: its status, its envelope, and the headers that go with the status."""
    current = request_id.get()
    body = ErrorEnvelope(error=ErrorObject.of(error, current))
    return JSONResponse(
        body.model_dump(mode="json"),
        status_code=error.status,
        headers={**_retry_headers(error), **(headers or {}), **({HEADER: current} if current else {})},
    )


def _retry_headers(error: ArmatureError) -> dict[str, str]:
    """Return the headers that tell a client whether to authenticate, retry or give up."""
    if error.retryable:
        return _RETRY
    return {401: _CHALLENGE, 409: _NO_RETRY}.get(error.status, {})


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` with the envelope."""
    app.add_exception_handler(ArmatureError, _on_armature_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected_error)


def validation_error(errors: Sequence[Mapping[str, Any]], body: Any = None) -> InvalidRequest:
    """Convert pydantic's most specific error: the field as a dotted path, and never the value sent."""
    path, first = _most_telling([(_field_path(error, body), error) for error in errors])
    param = ".".join(path)[:_MAX_TEXT] or None
    kind = _BY_PYDANTIC_TYPE.get(first["type"], InvalidRequest)
    return kind(_message(first)[:_MAX_TEXT], param=param)


async def _on_armature_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ArmatureError)
    if error.status >= 500:
        cause = type(error.__cause__).__name__ if error.__cause__ else None
        get_logger(__name__).error("request failed", code=error.error_code, path=request.url.path, cause=cause)
    return error_response(error, error.headers if isinstance(error, RateLimited) else None)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_response(validation_error(error.errors(), error.body))


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind, message = _BY_STATUS.get(error.status_code, (ArmatureError, "the request failed"))
    headers = {"Allow": ", ".join(_methods_of(request))} if kind is MethodNotAllowed else None
    return error_response(kind(message), headers)


async def _on_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    # Starlette re-raises the error after the response, and the server logs its traceback with the request id.
    return error_response(ArmatureError("internal error; the platform's operator finds the cause by the request id"))


def _methods_of(request: Request) -> list[str]:
    """List the methods of all routes at the path; Starlette's Allow header names the first route's only."""
    routes = iter_route_contexts(request.app.routes)
    return sorted({m for r in routes if r.path_regex.match(request.url.path) for m in r.methods or ()})


def _most_telling(errors: list[_Located]) -> _Located:
    """Return the first error; for a union, which fails once per alternative, that of the best fit."""
    field = errors[0][0]
    alternatives = [(path, error) for path, error in errors if path[: len(field)] == field]
    return min(alternatives, key=lambda located: (_is_type_error(located[1]), -len(located[0])))


def _is_type_error(error: Mapping[str, Any]) -> bool:
    kind: str = error["type"]
    return kind == "literal_error" or kind.endswith("_type")


def _field_path(error: Mapping[str, Any], body: Any) -> list[str]:
    """Return the error's location without its leading ``body`` and without union tags.

    A tag is a part of the location that the body does not have; the last part of a missing field is the one exception.
    A wrong tag is reported for the field that holds it, and a cross-field validator's error for the field it names.
    """
    kind, (source, *parts) = error["type"], error["loc"]
    below = _named_in(error)
    if source != "body":
        return [str(part) for part in parts] + below
    path, value = [], body
    for index, part in enumerate(parts):
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if not (kind == "missing" and index == len(parts) - 1):
                continue
        path.append(str(part))
    return path + below


def _named_in(error: Mapping[str, Any]) -> list[str]:
    """Return the path from pydantic's location to the field that the error itself names."""
    context = error.get("ctx", {})
    if error["type"] in _TAG_ERRORS:
        return [context["discriminator"].strip("'")]
    cause = context.get("error")
    return cause.field.split(".") if isinstance(cause, FieldError) else []


def _message(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "union_tag_invalid":  # pydantic's own text repeats the value sent
            return f"must be one of {error['ctx']['expected_tags']}"
        case "extra_forbidden":
            return "there is no such field"
        case "missing" | "union_tag_not_found":
            return "this field is required"
        case "value_error":
            cause = error["ctx"]["error"]
            return cause.message if isinstance(cause, FieldError) else str(cause)
        case _:
            return str(error["msg"])
