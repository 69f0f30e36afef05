"""Liveness and readiness. Liveness checks no other system: a restart would not repair it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter

from armature.errors import Unavailable
from armature.logging import get_logger

Check = Callable[[], object]
"""A readiness check: raises or returns False if the part is not usable."""


def health_router(checks: Mapping[str, Check]) -> APIRouter:
    """Make ``/healthz`` (the process answers) and ``/readyz`` (503 naming the ``checks`` that fail)."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @router.get("/readyz")
    def readyz() -> dict[str, str]:
        """The process can serve: each part that it needs answers."""
        failing = [name for name, check in checks.items() if not _passes(name, check)]
        if failing:
            raise Unavailable(f"not ready: {', '.join(failing)}")
        return {"status": "ok", **dict.fromkeys(checks, "ok")}

    return router


def _passes(name: str, check: Check) -> bool:
    try:
        return check() is not False
    except Exception as error:
        get_logger(__name__).warning("readiness check failed", check=name, reason=type(error).__name__)
        return False
