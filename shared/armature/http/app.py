"""The FastAPI app that both services build on: middleware, error envelope, health and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

import armature
from armature.http.answer_headers import AnswerHeadersMiddleware
from armature.http.errors import install_error_handlers
from armature.http.health import Check, health_router
from armature.http.limits import BodyLimits, RequestLimitMiddleware
from armature.http.metrics import HttpMetrics, HttpMetricsMiddleware, metrics_router
from armature.http.openapi import DescribedApp
from armature.http.request_id import HEADER, RequestIdMiddleware
from armature.settings import HttpSettings

DOCS_PATH = "/docs"
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def make_http_app(
    *,
    title: str,
    lifespan: Lifespan,
    registry: CollectorRegistry,
    checks: Mapping[str, Check],
    limits: BodyLimits,
    http: HttpSettings = HttpSettings(),
) -> FastAPI:
    """Make an app whose only routes are ``/healthz``, ``/readyz`` and the OpenAPI document.

    ``/metrics``, the page ``/docs`` and CORS are off unless ``http`` turns them on.

    Args:
        title: The service's name in the OpenAPI document.
        lifespan: Opens and closes the service's resources.
        registry: The registry of the service's metrics.
        checks: The readiness checks of ``/readyz`` by name.
        limits: The largest request bodies.
        http: The settings of the HTTP server.
    """
    docs_url = DOCS_PATH if http.docs else None
    app = DescribedApp(
        title=title,
        version=armature.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=docs_url,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    install_error_handlers(app)
    # The middleware added last is the outermost: the request id must exist before anything can fail.
    app.add_middleware(RequestLimitMiddleware, limits=limits, patience=http.body_patience)
    if http.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=http.cors_origins,
            allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", HEADER],
            expose_headers=[HEADER, "Location", "Retry-After"],
        )
    app.add_middleware(AnswerHeadersMiddleware, unguarded=frozenset({DOCS_PATH}))
    app.add_middleware(HttpMetricsMiddleware, metrics=HttpMetrics(registry))
    app.add_middleware(RequestIdMiddleware)
    add_routes(app, health_router(checks))
    if token := http.metrics_token.get_secret_value():
        add_routes(app, metrics_router(registry, token))
    return app


def add_routes(app: FastAPI, router: APIRouter) -> None:
    """Add a router's routes to ``app`` as they are; ``include_router`` would build each a second time."""
    app.router.routes.extend(router.routes)
