"""What the client raises, named as in OpenAI's package."""

from __future__ import annotations

import httpx
from pydantic import ValidationError

from armature.contracts.errors import ErrorEnvelope, ErrorObject
from armature.contracts.jobs import JobView


class ConfigurationError(ValueError):
    """It is not said where the platform is or with which key, or what is said can not be."""


class APIError(Exception):
    """Base of what a call can end with."""


class APIConnectionError(APIError):
    """No answer: the connection failed, also when it was tried again."""


class APITimeoutError(APIConnectionError):
    """No answer in time."""


class APIStatusError(APIError):
    """The platform answered with an error.

    Args:
        error: The object of the envelope.
        retry_after: Seconds after which another try may do better, if the answer says so.
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


def status_error(response: httpx.Response) -> APIStatusError:
    """The exception for an answer that is not 2xx and was read to its end."""
    try:
        error = ErrorEnvelope.model_validate_json(response.content).error
    except ValidationError:  # something between us and the platform answered
        text = response.content[:500].decode(errors="replace")
        error = ErrorObject(message=text, type="server_error", code="not_an_envelope")
    return stream_error(response.status_code, error, seconds_to_wait(response))


def stream_error(status: int, error: ErrorObject, retry_after: float | None = None) -> APIStatusError:
    """The exception for an error object that came with a status, or in the middle of a stream."""
    default = InternalServerError if status >= 500 else APIStatusError
    return _BY_STATUS.get(status, default)(status, error, retry_after)


def seconds_to_wait(response: httpx.Response) -> float | None:
    """How long the answer asks to wait before another try."""
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


def connection_error(error: httpx.TransportError) -> APIConnectionError:
    """The exception for a call that got no answer."""
    kind = APITimeoutError if isinstance(error, httpx.TimeoutException) else APIConnectionError
    url = error.request.url
    return kind(f"no answer from {url.scheme}://{url.netloc.decode()}: {type(error).__name__}: {error}")
