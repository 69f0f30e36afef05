"""What a route may ask for: who calls, a session, the store. Every ``/v1`` router is made by :func:`scoped_router`."""

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

UPLOADS_AT_ONCE = 8
"""Uploads that are hashed, checked and put into the store at the same time."""


@dataclass(frozen=True)
class Resources:
    """What one app holds for its whole life. Opening it connects to nothing.

    Sessions of ``readers`` and ``writers`` act for the whole system; a request gets its own from the dependencies.
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
        """Build everything from the settings."""
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
            uploads=CapacityLimiter(UPLOADS_AT_ONCE),
        )

    def close(self) -> None:
        """Give back connections."""
        self.celery.close()
        self.counter.close()
        self.engine.dispose()


def get_resources(request: Request) -> Resources:
    """The app's resources."""
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(get_resources)]


def get_store(resources: ResourcesDep) -> ArtifactStore:
    """The artifact store."""
    return resources.store


@contextmanager
def unit_of_work(sessions: sessionmaker[Session], acts_for: str) -> Iterator[Session]:
    """A transaction for a tenant, or for :data:`SYSTEM`: committed at its end, rolled back by an exception.

    Raises:
        Unavailable: The database does not answer, or not in time.
    """
    try:
        with session_for(sessions, acts_for) as session, session.begin():
            yield session
    except DATABASE_OUTAGES as error:
        raise Unavailable("the database does not answer") from error


StoreDep = Annotated[ArtifactStore, Depends(get_store)]

AT_ONCE = 16
"""Requests that have a session at the same time; more wait, and hold neither a thread nor a connection.

A request goes from thread to thread: one runs its route, another one checks its answer, and its transaction stays open
until then. If requests could take every thread to wait for what such a transaction holds, a lock or a connection, it
would wait for them and they for it. So this stays well below the forty threads that the framework has.
"""


async def _take_a_turn() -> AsyncIterator[None]:
    yield


TurnDep = Annotated[None, Depends(_take_a_turn, scope="function", max_concurrency=AT_ONCE)]
"""Whatever opens a request's session depends on it."""

_documented_scheme: SecurityBase = HTTPBearer(auto_error=False, description="An API key, `ak_...`")


def authenticate(
    request: Request,
    resources: ResourcesDep,
    after_answer: BackgroundTasks,
    _: Annotated[object, Security(_documented_scheme)],
) -> Caller:
    """The caller behind the request's key, within its tenant's rate.

    Raises:
        Unauthenticated: No valid key.
        RateLimited: The tenant asks too often, or too many wrong keys came from the address.
    """
    with unit_of_work(resources.readers, SYSTEM) as session:
        identified = identify(request, session, resources.wrong_keys)
    caller = identified.caller
    if identified.use_is_news:
        after_answer.add_task(resources.last_use.note, caller.key_id)
    # Keys that set limits are not bound by this one, so that it can always be lifted.
    if (limit := caller.limits.requests_per_minute) is not None and "platform" not in caller.scopes:
        rate = Rate("requests", limit, resources.counter.add(f"requests:{caller.tenant_id}", 1))
        add_headers(request, rate.headers())
        rate.check()
    return caller


CallerDep = Annotated[Caller, Depends(authenticate, max_concurrency=AT_ONCE // 2)]


def _open_reader(resources: ResourcesDep, caller: CallerDep, _: TurnDep) -> Iterator[Session]:
    with unit_of_work(resources.readers, caller.tenant_id) as session:
        yield session


def _open_writer(request: Request, resources: ResourcesDep, caller: CallerDep, _: TurnDep) -> Iterator[Session]:
    with _recorded(request, resources, caller, caller.tenant_id) as session:
        yield session


def _open_platform_reader(resources: ResourcesDep, _: TurnDep) -> Iterator[Session]:
    with unit_of_work(resources.readers, SYSTEM) as session:
        yield session


def _open_platform_writer(
    request: Request, resources: ResourcesDep, caller: CallerDep, _: TurnDep
) -> Iterator[Session]:
    with _recorded(request, resources, caller, SYSTEM) as session:
        yield session


@contextmanager
def _recorded(request: Request, resources: Resources, caller: Caller, acts_for: str) -> Iterator[Session]:
    """A unit of work whose changes go to the caller's audit log, in the same transaction."""
    with unit_of_work(resources.writers, acts_for) as session:
        trail.begin(session)
        yield session
        trail.record(session, caller.tenant_id, caller.key_id, request.scope["route"].name, caller.address)


# "function": the commit happens before the answer leaves, so a commit that fails is told to the client. The default
# scope would commit afterwards.
ReaderDep = Annotated[Session, Depends(_open_reader, scope="function")]
"""For a route that only reads: it neither waits for writers nor delays them. It sees the caller's tenant."""
SessionDep = Annotated[Session, Depends(_open_writer, scope="function")]
"""The request's unit of work, for the caller's tenant. It begins with the first statement, so slow input is read
before that."""
PlatformReaderDep = Annotated[Session, Depends(_open_platform_reader, scope="function")]
"""As :data:`ReaderDep`, over all tenants."""
PlatformSessionDep = Annotated[Session, Depends(_open_platform_writer, scope="function")]
"""As :data:`SessionDep`, over all tenants."""


def _scope_for(area: Area, method: str) -> Scope:
    """The scope that a route of the area needs."""
    name = area if area == "platform" else f"{area}:{'read' if method == 'GET' else 'write'}"
    return cast(Scope, name)


def _requires(area: Area) -> Callable[[Request, Caller], None]:
    def check_scope(request: Request, caller: CallerDep) -> None:
        caller.require(_scope_for(area, request.method))

    return check_scope


def scoped_router(tag: str, area: Area) -> APIRouter:
    """A router below ``/v1`` on which nothing answers without a key that may read, or change, that area."""
    return APIRouter(
        prefix="/v1",
        tags=[tag],
        route_class=StrictJSONRoute,
        dependencies=[Depends(_requires(area))],
        responses=ENVELOPE_RESPONSES,
    )
