"""Exceptions of the client, named as in OpenAI's package."""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from armature.contracts.errors import ErrorEnvelope, ErrorObject
from armature.contracts.jobs import JobView


class ConfigurationError(ValueError):
    """An address or the API key is missing or invalid."""


class APIError(Exception):
    """Base of the errors of a call."""


class APIConnectionError(APIError):
    """The connection failed, after all retries."""


class APITimeoutError(APIConnectionError):
    """The answer did not come in time, after all retries."""


class APIStatusError(APIError):
    """The platform answered with an error.

    Args:
        status: The HTTP status.
        error: The error object of the answer.
        retry_after: Seconds after which a retry may succeed, if the answer has ``Retry-After``.
    """

    def __init__(self, status: int, error: ErrorObject, retry_after: float | None = None) -> None:
        field = f" ({error.param})" if error.param else ""
        later = f"; try again in {retry_after:g} s" if retry_after else ""
        super().__init__(f"{status} {error.code}: {error.message}{field}{later}")
        self.status = status
        self.error = error
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        """Stable code of the error."""
        return self.error.code

    @property
    def request_id(self) -> str | None:
        """Id of the request in the platform's log."""
        return self.error.request_id


class BadRequestError(APIStatusError):
    """400."""


class AuthenticationError(APIStatusError):
    """401: no valid key."""


class PermissionDeniedError(APIStatusError):
    """403: the key lacks a scope, or the tenant's plan does not allow it."""


class NotFoundError(APIStatusError):
    """404."""


class ConflictError(APIStatusError):
    """409: the resource's state does not allow it."""


class UnprocessableEntityError(APIStatusError):
    """422: a field is wrong; ``error.param`` names it."""


class RateLimitError(APIStatusError):
    """429."""


class InternalServerError(APIStatusError):
    """5xx."""


class JobFailed(Exception):
    """A job failed or was cancelled; ``job`` is its final view."""

    def __init__(self, job: JobView) -> None:
        reason = job.error.message if job.error else "no error recorded"
        super().__init__(f"job {job.id} ({job.kind}) {job.state}: {reason}")
        self.job = job


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(response: httpx.Response) -> APIStatusError:
    """Make the exception for a complete answer that is not 2xx."""
    try:
        error = ErrorEnvelope.model_validate_json(response.content).error
    except ValidationError:  # a proxy in between answered
        text = response.content[:500].decode(errors="replace")
        error = ErrorObject(message=text, type="server_error", code="not_an_envelope")
    return stream_error(response.status_code, error, seconds_to_wait(response))


def stream_error(status: int, error: ErrorObject, retry_after: float | None = None) -> APIStatusError:
    """Make the exception for an error object, from an answer with ``status`` or from a stream."""
    default = InternalServerError if status >= 500 else APIStatusError
    return _BY_STATUS.get(status, default)(status, error, retry_after)


def seconds_to_wait(response: httpx.Response) -> float | None:
    """Read the answer's ``Retry-After`` in seconds; None if it has none."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def connection_error(error: httpx.TransportError) -> APIConnectionError:
    """Make the exception for a call without an answer."""
    kind = APITimeoutError if isinstance(error, httpx.TimeoutException) else APIConnectionError
    url = error.request.url
    return kind(f"no answer from {url.scheme}://{url.netloc.decode()}: {type(error).__name__}: {error}")
