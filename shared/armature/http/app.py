"""The FastAPI app that both services build on: the envelope, request ids, body limits, health and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from armature.http.answer_headers import AnswerHeadersMiddleware
from armature.http.errors import install_error_handlers
from armature.http.health import Check, health_router
from armature.http.limits import RequestLimitMiddleware
from armature.http.metrics import HttpMetrics, HttpMetricsMiddleware, metrics_router
from armature.http.openapi import DescribedApp
from armature.http.request_id import HEADER, RequestIdMiddleware
from armature.settings import HttpSettings

DOCS_PATH = "/docs"
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
    http: HttpSettings = HttpSettings(),
) -> FastAPI:
    """An app without routes of its own except ``/healthz``, ``/readyz`` and the API's description.

    What an operator has to ask for: ``/metrics``, a page for people at ``/docs``, and answers to other origins.

    Args:
        title: The service's name in its API description.
        version: Of the service.
        lifespan: Opens and closes what the service holds.
        registry: Where the service's metrics live.
        checks: What ``/readyz`` asks.
        body_limit: Largest body in bytes.
        body_limits: Other limits by path.
        http: What is open to whom.
    """
    docs_url = DOCS_PATH if http.docs else None
    app = DescribedApp(
        title=title,
        version=version,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=docs_url,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    install_error_handlers(app)
    # The last one added is the outermost: ids exist before anything can fail.
    app.add_middleware(RequestLimitMiddleware, default=body_limit, by_path=body_limits, patience=http.body_patience)
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
    """Serve a router's routes as they are: including it would build each of them once more, at the first request."""
    app.router.routes.extend(router.routes)
