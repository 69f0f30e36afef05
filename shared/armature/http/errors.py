"""Every answer that is not 2xx, the framework's own included, is the envelope that OpenAI's clients read."""

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
"""For a router's ``responses``: the envelope in the OpenAPI document."""

_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_TRY_AGAIN = {"Retry-After": "1", "x-should-retry": "true"}
_GIVE_UP = {"x-should-retry": "false"}  # OpenAI's clients repeat a 409 unless told not to
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
"""An error, behind the path of its field."""
_MAX_TEXT = 500
"""Longest message and param that an answer carries; field names come from the client."""


def error_response(error: ArmatureError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer for an error: its status, its envelope, and the headers that go with the status."""
    current = request_id.get()
    body = ErrorEnvelope(error=ErrorObject.of(error, current))
    return JSONResponse(
        body.model_dump(mode="json"),
        status_code=error.status,
        headers={**_steering(error), **(headers or {}), **({HEADER: current} if current else {})},
    )


def _steering(error: ArmatureError) -> dict[str, str]:
    """What tells a client how to go on."""
    if error.retryable:
        return _TRY_AGAIN
    return {401: _CHALLENGE, 409: _GIVE_UP}.get(error.status, {})


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of an app with the envelope."""
    app.add_exception_handler(ArmatureError, _on_armature_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected_error)


def validation_error(errors: Sequence[Mapping[str, Any]], body: Any = None) -> InvalidRequest:
    """Pydantic's first complaint as ours: the field as a dotted path, and never the value that was sent."""
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
    # Starlette raises the error again after the answer, and the server logs it with its traceback and request id.
    return error_response(ArmatureError("the platform failed; the request id helps its operator to find out why"))


def _methods_of(request: Request) -> list[str]:
    """What the path takes over all its routes; the framework's own answer names the first route's methods only."""
    routes = iter_route_contexts(request.app.routes)
    return sorted({m for r in routes if r.path_regex.match(request.url.path) for m in r.methods or ()})


def _most_telling(errors: list[_Located]) -> _Located:
    """The first error; of a union, which fails once per alternative, that of the alternative that was meant."""
    field = errors[0][0]
    alternatives = [(path, error) for path, error in errors if path[: len(field)] == field]
    return min(alternatives, key=lambda one: (_is_of_another_type(one[1]), -len(one[0])))


def _is_of_another_type(error: Mapping[str, Any]) -> bool:
    kind: str = error["type"]
    return kind == "literal_error" or kind.endswith("_type")


def _field_path(error: Mapping[str, Any], body: Any) -> list[str]:
    """The location without its leading ``body`` and without union tags.

    A tag is a part that the body does not have; the last part of a missing field is the one exception. What is wrong
    with a tag is said of the field that holds it, and what a validator of several fields says of the one it names.
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
    """The path to the field that the error names, from where pydantic puts it."""
    context = error.get("ctx", {})
    if error["type"] in _TAG_ERRORS:
        return [context["discriminator"].strip("'")]
    complaint = context.get("error")
    return complaint.field.split(".") if isinstance(complaint, FieldError) else []


def _message(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "union_tag_invalid":  # pydantic's own text repeats what was sent
            return f"must be one of {error['ctx']['expected_tags']}"
        case "extra_forbidden":
            return "there is no such field"
        case "missing" | "union_tag_not_found":
            return "this field is required"
        case "value_error":
            complaint = error["ctx"]["error"]
            return complaint.message if isinstance(complaint, FieldError) else str(complaint)
        case _:
            return str(error["msg"])
