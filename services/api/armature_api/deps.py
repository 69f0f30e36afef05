"""Dependencies of routes: caller, database session, store; and routers that require a scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, cast

from anyio import CapacityLimiter
from celery import Celery
from fastapi import APIRouter, BackgroundTasks, Depends, Request, Security
from fastapi.security import HTTPBearer
from fastapi.security.base import SecurityBase
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.tenants import Area, Scope
from armature.db.row_security import SYSTEM
from armature.db.session import DATABASE_OUTAGES, make_engine, make_session_factory, session_for
from armature.errors import Unavailable
from armature.http.answer_headers import add_headers
from armature.http.errors import ENVELOPE_RESPONSES
from armature.http.json import StrictJSONRoute
from armature.http.rates import Rate, WrongKeys
from armature.queue import make_celery
from armature.storage import open_store
from armature.storage.base import ArtifactStore
from armature_api.audit import trail
from armature_api.callers import Caller, LastUse, identify
from armature_api.jobs.event_stream import JobEventStream
from armature_api.kit.rates import SharedCounter
from armature_api.settings import ApiServiceSettings

MAX_UPLOADS = 8
"""Uploads that are hashed, checked and put into the store at the same time; more wait."""


@dataclass(frozen=True)
class Resources:
    """What one app holds until shutdown: pools, clients and counters. Opening it connects to nothing.

    Sessions of ``readers`` and ``writers`` act for the whole system; routes take theirs from the dependencies.
    """

    settings: ApiServiceSettings
    engine: Engine
    readers: sessionmaker[Session]
    writers: sessionmaker[Session]
    store: ArtifactStore
    celery: Celery
    counter: SharedCounter
    wrong_keys: WrongKeys
    last_use: LastUse
    event_stream: JobEventStream
    uploads: CapacityLimiter
    """Threads that receive uploads."""
    idempotency_patience: float = 5.0
    """Seconds that a request waits for a concurrent one with its Idempotency-Key (PostgreSQL)."""

    @classmethod
    def open(cls, settings: ApiServiceSettings) -> Resources:
        """Build the resources from ``settings``."""
        engine = make_engine(settings.database)
        writers = make_session_factory(engine)
        trail.watch(writers)
        readers = make_session_factory(engine, read_only=True)
        counter = SharedCounter(settings.redis)
        return cls(
            settings=settings,
            engine=engine,
            readers=readers,
            writers=writers,
            store=open_store(settings.store),
            celery=make_celery(settings.redis),
            counter=counter,
            wrong_keys=WrongKeys(counter, settings.http.wrong_keys_per_minute),
            last_use=LastUse(writers),
            event_stream=JobEventStream(readers),
            uploads=CapacityLimiter(MAX_UPLOADS),
        )

    def close(self) -> None:
        """Close all connections."""
        self.celery.close()
        self.counter.close()
        self.engine.dispose()


def get_resources(request: Request) -> Resources:
    """Return the app's resources."""
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(get_resources)]


def get_store(resources: ResourcesDep) -> ArtifactStore:
    """Return the artifact store."""
    return resources.store


@contextmanager
def unit_of_work(sessions: sessionmaker[Session], acts_for: str) -> Iterator[Session]:
    """Open a transaction for a tenant or :data:`SYSTEM`; an exception rolls it back.

    Raises:
        Unavailable: The database does not answer, or not in time.
    """
    try:
        with session_for(sessions, acts_for) as session, session.begin():
            yield session
    except DATABASE_OUTAGES as error:
        raise Unavailable("the database does not answer") from error


StoreDep = Annotated[ArtifactStore, Depends(get_store)]

MAX_SESSIONS = 16
"""Requests that have a session at the same time; more wait, and hold neither a thread nor a connection.

Deadlock otherwise: a route runs in one pool thread and its response is validated in another, with the transaction
open until then. If requests that wait for its locks or connections held all of the framework's forty threads, the
transaction could never end.
"""


async def _session_slot() -> AsyncIterator[None]:
    yield


SessionSlotDep = Annotated[None, Depends(_session_slot, scope="function", max_concurrency=MAX_SESSIONS)]
"""Each dependency that opens a request's session depends on this one."""

_documented_scheme: SecurityBase = HTTPBearer(auto_error=False, description="An API key, `ak_...`")


def authenticate(
    request: Request,
    resources: ResourcesDep,
    after_answer: BackgroundTasks,
    _: Annotated[object, Security(_documented_scheme)],
) -> Caller:
    """Find the caller by the request's key and apply the tenant's request rate.

    Raises:
        Unauthenticated: The request has no valid key.
        RateLimited: The tenant exceeds its rate, or too many wrong keys came from the address.
    """
    with unit_of_work(resources.readers, SYSTEM) as session:
        identified = identify(request, session, resources.wrong_keys)
    caller = identified.caller
    if identified.last_use_is_stale:
        after_answer.add_task(resources.last_use.note, caller.key_id)
    # Exempt keys that can set limits: a limit of 0 could otherwise never be lifted.
    if (limit := caller.limits.requests_per_minute) is not None and "platform" not in caller.scopes:
        used = resources.counter.add(f"requests:{caller.tenant_id}", 1)
        rate = Rate("requests", limit, used, resources.counter.clock)
        add_headers(request, rate.headers())
        rate.check()
    return caller


CallerDep = Annotated[Caller, Depends(authenticate, max_concurrency=MAX_SESSIONS // 2)]


def _open_reader(resources: ResourcesDep, caller: CallerDep, _: SessionSlotDep) -> Iterator[Session]:
    with unit_of_work(resources.readers, caller.tenant_id) as session:
        yield session


def _open_writer(request: Request, resources: ResourcesDep, caller: CallerDep, _: SessionSlotDep) -> Iterator[Session]:
    with _recorded(request, resources, caller, caller.tenant_id) as session:
        yield session


def _open_platform_reader(resources: ResourcesDep, _: SessionSlotDep) -> Iterator[Session]:
    with unit_of_work(resources.readers, SYSTEM) as session:
        yield session


def _open_platform_writer(
    request: Request, resources: ResourcesDep, caller: CallerDep, _: SessionSlotDep
) -> Iterator[Session]:
    with _recorded(request, resources, caller, SYSTEM) as session:
        yield session


@contextmanager
def _recorded(request: Request, resources: Resources, caller: Caller, acts_for: str) -> Iterator[Session]:
    """Open a unit of work that writes its changes to the caller's audit log in the same transaction."""
    with unit_of_work(resources.writers, acts_for) as session:
        trail.begin(session)
        yield session
        trail.record(session, caller.tenant_id, caller.key_id, request.scope["route"].name, caller.address)


# scope="function" commits before the response is sent, so the client learns of a failed commit; the default scope
# commits afterwards.
ReaderDep = Annotated[Session, Depends(_open_reader, scope="function")]
"""A read-only session for the caller's tenant; it neither waits for writers nor delays them."""
SessionDep = Annotated[Session, Depends(_open_writer, scope="function")]
"""The request's unit of work for the caller's tenant. It begins with the first statement: read slow input before."""
PlatformReaderDep = Annotated[Session, Depends(_open_platform_reader, scope="function")]
"""As :data:`ReaderDep`, over all tenants."""
PlatformSessionDep = Annotated[Session, Depends(_open_platform_writer, scope="function")]
"""As :data:`SessionDep`, over all tenants."""


def _scope_for(area: Area, method: str) -> Scope:
    """Name the scope that a route of the area needs."""
    name = area if area == "platform" else f"{area}:{'read' if method == 'GET' else 'write'}"
    return cast(Scope, name)


def _requires(area: Area) -> Callable[[Request, Caller], None]:
    def check_scope(request: Request, caller: CallerDep) -> None:
        caller.require(_scope_for(area, request.method))

    return check_scope


def scoped_router(tag: str, area: Area) -> APIRouter:
    """Make a router below ``/v1`` whose routes need a key with the area's read scope (GET) or write scope."""
    return APIRouter(
        prefix="/v1",
        tags=[tag],
        route_class=StrictJSONRoute,
        dependencies=[Depends(_requires(area))],
        responses=ENVELOPE_RESPONSES,
    )
