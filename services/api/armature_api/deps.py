"""What a route may ask for: who calls, a session, the store. Every ``/v1`` router is made by :func:`scoped_router`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import HTTPBearer
from fastapi.security.base import SecurityBase
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.tenants import Scope
from armature.db.base import db_now
from armature.db.models import ApiKey
from armature.db.session import DATABASE_OUTAGES, make_engine, make_session_factory
from armature.errors import PermissionDenied, Unauthenticated, Unavailable
from armature.http.auth import bearer_token, same_secret, split_token
from armature.http.errors import ENVELOPE_RESPONSES
from armature.http.json import StrictJSONRoute
from armature.queue import make_celery
from armature.storage import open_store
from armature.storage.base import ArtifactStore
from armature_api.settings import ApiServiceSettings


@dataclass(frozen=True)
class Resources:
    """What one app holds for its whole life. Opening it connects to nothing."""

    settings: ApiServiceSettings
    engine: Engine
    readers: sessionmaker[Session]
    writers: sessionmaker[Session]
    store: ArtifactStore
    celery: Celery

    @classmethod
    def open(cls, settings: ApiServiceSettings) -> Resources:
        """Build everything from the settings."""
        engine = make_engine(settings.database)
        return cls(
            settings=settings,
            engine=engine,
            readers=make_session_factory(engine, read_only=True),
            writers=make_session_factory(engine),
            store=open_store(settings.store),
            celery=make_celery(settings.redis),
        )

    def close(self) -> None:
        """Give back connections."""
        self.celery.close()
        self.engine.dispose()


@dataclass(frozen=True)
class Caller:
    """The tenant and key behind a request."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]

    def require(self, scope: Scope) -> None:
        """Refuse a key without the scope.

        Raises:
            PermissionDenied: Naming the scope.
        """
        if scope not in self.scopes:
            raise PermissionDenied(f"this needs a key with the scope {scope!r}")


def get_resources(request: Request) -> Resources:
    """The app's resources."""
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(get_resources)]


def get_store(resources: ResourcesDep) -> ArtifactStore:
    """The artifact store."""
    return resources.store


@contextmanager
def unit_of_work(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """A transaction: committed at its end, rolled back by an exception.

    Raises:
        Unavailable: The database does not answer, or not in time.
    """
    try:
        with sessions.begin() as session:
            yield session
    except DATABASE_OUTAGES as error:
        raise Unavailable("the database does not answer") from error


def open_reader(resources: ResourcesDep) -> Iterator[Session]:
    """A session for a route that only reads: it neither waits for writers nor delays them."""
    with unit_of_work(resources.readers) as session:
        yield session


def open_writer(resources: ResourcesDep) -> Iterator[Session]:
    """The request's unit of work. It begins with the first statement, so slow input is read before that."""
    with unit_of_work(resources.writers) as session:
        yield session


StoreDep = Annotated[ArtifactStore, Depends(get_store)]
# "function": the commit happens before the answer leaves, so a commit that fails is told to the client. The default
# scope would commit afterwards.
ReaderDep = Annotated[Session, Depends(open_reader, scope="function")]
SessionDep = Annotated[Session, Depends(open_writer, scope="function")]

_documented_scheme: SecurityBase = HTTPBearer(auto_error=False, description="An API key, `ak_...`")


def authenticate(
    request: Request, resources: ResourcesDep, _: Annotated[object, Security(_documented_scheme)]
) -> Caller:
    """The caller behind the request's key. Unknown, wrong, revoked and expired keys look alike.

    Raises:
        Unauthenticated: No valid key.
    """
    key_id, presented = split_token(bearer_token(request))
    with unit_of_work(resources.readers) as session:
        found = session.execute(select(ApiKey, db_now()).where(ApiKey.id == key_id)).one_or_none()
    key, now = found or (None, 0.0)
    if not same_secret(presented, key.secret_sha256 if key else None) or key is None or not _is_active(key, now):
        raise Unauthenticated("the API key is not valid")
    return Caller(key.tenant_id, key.id, frozenset(key.scopes))


def _is_active(key: ApiKey, now: float) -> bool:
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


CallerDep = Annotated[Caller, Depends(authenticate)]


def _requires(scope: Scope) -> Callable[[Caller], None]:
    def check_scope(caller: CallerDep) -> None:
        caller.require(scope)

    return check_scope


def scoped_router(tag: str, scope: Scope) -> APIRouter:
    """A router below ``/v1`` on which nothing answers without a key of that scope."""
    return APIRouter(
        prefix="/v1",
        tags=[tag],
        route_class=StrictJSONRoute,
        dependencies=[Depends(_requires(scope))],
        responses=ENVELOPE_RESPONSES,
    )
