"""Prometheus metrics of an HTTP service, in a registry per app: a process can hold several apps."""

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
"""Written out: FastAPI would document a model under the route's content type, plain text."""


class HttpMetrics:
    """The request counter by method, route template and status, and the latency histogram."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self.requests = Counter("armature_http_requests", "HTTP requests answered", labels, registry=registry)
        self.seconds = Histogram(
            "armature_http_request_seconds", "Time until the answer is sent", ("method", "route"), registry=registry
        )


class HttpMetricsMiddleware:
    """ASGI middleware that records into :class:`HttpMetrics`.

    The label is the route's template, never the path: ids would create an unbounded number of series.
    """

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
    """Make the route ``/metrics`` in Prometheus' text format, protected by the bearer token ``token``."""
    router = APIRouter(tags=["health"])

    @router.get("/metrics", response_class=PlainTextResponse, responses={"4XX": _REFUSED})
    def metrics(request: Request) -> Response:
        """Return this process's metrics."""
        if not hmac.compare_digest(bearer_token(request), token):
            raise Unauthenticated("the metrics token is not valid")
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
