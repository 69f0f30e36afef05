"""The Python SDK: ``Client`` and ``AsyncClient``, which differ in ``await`` alone.

``aio`` is written by hand; ``sync`` is generated from it by ``python -m tests.support.synchronous``, and a test checks
that the two agree.
"""

from armature.client.aio.client import AsyncClient
from armature.client.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    JobFailed,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from armature.client.sync.client import Client

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "InternalServerError",
    "JobFailed",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "UnprocessableEntityError",
]
