"""What the client raises, named as in OpenAI's package."""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from armature.contracts.errors import ErrorEnvelope, ErrorObject
from armature.contracts.jobs import JobView


class APIError(Exception):
    """Base of what a call can end with."""


class APIConnectionError(APIError):
    """No answer: the connection failed, also when it was tried again."""


class APITimeoutError(APIConnectionError):
    """No answer in time."""


class APIStatusError(APIError):
    """The platform answered with an error; ``error`` is the object of the envelope."""

    def __init__(self, status: int, error: ErrorObject) -> None:
        super().__init__(f"{status} {error.code}: {error.message}" + (f" ({error.param})" if error.param else ""))
        self.status = status
        self.error = error

    @property
    def code(self) -> str:
        """The stable name of what went wrong."""
        return self.error.code

    @property
    def request_id(self) -> str | None:
        """What the platform's log calls the request."""
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
    """A job ended without success; ``job`` is its last state."""

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


def status_error(status: int, content: bytes) -> APIStatusError:
    """The exception for an answer that is not 2xx."""
    try:
        error = ErrorEnvelope.model_validate_json(content).error
    except ValidationError:  # something between us and the platform answered
        text = content[:500].decode(errors="replace")
        error = ErrorObject(message=text, type="server_error", code="not_an_envelope")
    return stream_error(status, error)


def stream_error(status: int, error: ErrorObject) -> APIStatusError:
    """The exception for an error object that came with a status, or in the middle of a stream."""
    default = InternalServerError if status >= 500 else APIStatusError
    return _BY_STATUS.get(status, default)(status, error)


def connection_error(error: httpx.TransportError) -> APIConnectionError:
    """The exception for a call that got no answer."""
    kind = APITimeoutError if isinstance(error, httpx.TimeoutException) else APIConnectionError
    return kind(f"{type(error).__name__}: {error}")
