"""Prometheus metrics of an HTTP service. Each app has a registry of its own, so a process may hold several apps."""

from __future__ import annotations

import hmac
import time

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from armature.errors import Unauthenticated
from armature.http.auth import bearer_token

_ENVELOPE = {"$ref": "#/components/schemas/ErrorEnvelope"}
_REFUSED = {"description": "Without the token", "content": {"application/json": {"schema": _ENVELOPE}}}
"""Written out: a model would be documented with the content type of the figures."""


class HttpMetrics:
    """Counts requests by method, route template and status, and measures how long they take."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self.requests = Counter("armature_http_requests", "HTTP requests answered", labels, registry=registry)
        self.seconds = Histogram(
            "armature_http_request_seconds", "Time until the answer is sent", ("method", "route"), registry=registry
        )


class HttpMetricsMiddleware:
    """Feeds :class:`HttpMetrics`. Labels hold the route's template, never a path: ids would make endless series."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            method, route = scope["method"], getattr(scope.get("route"), "path_format", "none")
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - started)


def metrics_router(registry: CollectorRegistry, token: str) -> APIRouter:
    """``/metrics`` in Prometheus' text format, for whoever sends the token."""
    router = APIRouter(tags=["health"])

    @router.get("/metrics", response_class=PlainTextResponse, responses={"4XX": _REFUSED})
    def metrics(request: Request) -> Response:
        """What this process counted."""
        if not hmac.compare_digest(bearer_token(request), token):
            raise Unauthenticated("the metrics token is not valid")
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
