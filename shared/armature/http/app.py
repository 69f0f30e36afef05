"""The FastAPI app that both services build on: the envelope, request ids, body limits, health and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from armature.http.errors import install_error_handlers
from armature.http.health import Check, health_router
from armature.http.limits import BodyLimitMiddleware
from armature.http.metrics import HttpMetrics, HttpMetricsMiddleware, metrics_router
from armature.http.request_id import RequestIdMiddleware

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_http_app(
    *,
    title: str,
    version: str,
    lifespan: Lifespan,
    registry: CollectorRegistry,
    checks: Mapping[str, Check],
    body_limit: int,
    body_limits: Mapping[str, int] | None = None,
) -> FastAPI:
    """An app without routes of its own except ``/healthz``, ``/readyz``, ``/metrics`` and the API's description.

    Args:
        title: The service's name in its API description.
        version: Of the service.
        lifespan: Opens and closes what the service holds.
        registry: Where the service's metrics live.
        checks: What ``/readyz`` asks.
        body_limit: Largest body in bytes.
        body_limits: Other limits by path.
    """
    app = FastAPI(title=title, version=version, lifespan=lifespan, redirect_slashes=False)
    install_error_handlers(app)
    # The last one added is the outermost: ids exist before anything can fail.
    app.add_middleware(BodyLimitMiddleware, default=body_limit, by_path=body_limits)
    app.add_middleware(HttpMetricsMiddleware, metrics=HttpMetrics(registry))
    app.add_middleware(RequestIdMiddleware)
    app.include_router(health_router(checks))
    app.include_router(metrics_router(registry))
    return app
