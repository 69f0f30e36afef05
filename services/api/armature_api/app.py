"""The API's ASGI app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import select

from armature.contracts.serving import SNAPSHOT_KEY
from armature.db.models import Installation
from armature.http.app import add_routes, make_http_app
from armature.http.limits import BodyLimits
from armature_api.artifacts.routes import router as artifacts
from armature_api.audit.routes import router as audit
from armature_api.base_models.routes import router as base_models
from armature_api.datasets.routes import router as datasets
from armature_api.deps import Resources
from armature_api.files.routes import router as files
from armature_api.jobs.routes import router as jobs
from armature_api.metrics import JobCollector
from armature_api.openai_compat.fine_tuning import router as fine_tuning
from armature_api.openai_compat.model_list import router as models
from armature_api.profiles.routes import router as profiles
from armature_api.settings import ApiServiceSettings
from armature_api.tenants.routes import router as tenants

UPLOAD_PATHS = ("/v1/files", "/v1/dataset_checks")


def create_app(settings: ApiServiceSettings) -> FastAPI:
    """Build the app from ``settings``. It connects to nothing before the first request."""
    resources = Resources.open(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await resources.event_stream.end()
        resources.close()

    registry = CollectorRegistry()
    app = make_http_app(
        title="Armature",
        lifespan=lifespan,
        registry=registry,
        # Not the broker: without it jobs are accepted and wait.
        checks={"database": lambda: _is_installed(resources), "store": lambda: resources.store.head(SNAPSHOT_KEY)},
        limits=BodyLimits(settings.api.max_body, dict.fromkeys(UPLOAD_PATHS, settings.api.max_upload)),
        http=settings.http,
    )
    app.state.resources = resources
    registry.register(JobCollector(resources.readers))
    for router in (tenants, audit, files, datasets, base_models, artifacts, jobs, fine_tuning, models, profiles):
        add_routes(app, router)
    return app


def _is_installed(resources: Resources) -> bool:
    """Tell whether the bootstrap has run on this database."""
    with resources.readers.begin() as session:
        return session.scalars(select(Installation.id)).one_or_none() is not None
