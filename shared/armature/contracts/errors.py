"""The error envelope that both services return and that a failed job stores."""

from __future__ import annotations

from armature.contracts.base import View
from armature.errors import ArmatureError


class ErrorObject(View):
    """OpenAI's error object with the request id added."""

    message: str
    type: str
    param: str | None = None
    code: str
    request_id: str | None = None

    @classmethod
    def of(cls, error: ArmatureError, request_id: str | None = None) -> ErrorObject:
        """Convert a raised error."""
        return cls(
            message=error.message, type=error.type, param=error.param, code=error.error_code, request_id=request_id
        )


class ErrorEnvelope(View):
    """``{"error": {...}}``: the body of every response that is not 2xx."""

    error: ErrorObject
