"""Authentication: from a request's API key to its tenant, scopes and limits."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import Request

from armature.contracts.tenants import Scope, TenantLimits
from armature.db.base import db_now
from armature.db.models import ApiKey, Tenant
from armature.errors import PermissionDenied, Unauthenticated
from armature.http.auth import address_of, bearer_token, same_secret, split_token
from armature.http.rates import WrongKeys
from armature.logging import get_logger

_MINUTE = 60.0
_INVALID = "the API key is not valid"


@dataclass(frozen=True)
class Caller:
    """The tenant and the key of a request, and the address that it came from."""

    tenant_id: str
    key_id: str
    scopes: frozenset[str]
    limits: TenantLimits
    address: str | None = None

    def require(self, scope: Scope, *, param: str | None = None) -> None:
        """Refuse a key without the scope.

        Args:
            param: The request's field that needs the scope; None: the route itself does.

        Raises:
            PermissionDenied: The key lacks the scope; the message names it.
        """
        if scope not in self.scopes:
            raise PermissionDenied(f"this needs a key with the scope {scope!r}", param=param)


@dataclass
class LastUse:
    """Writes ``last_used_at`` of a key, at most once a minute; skipped while a write is in progress."""

    writers: sessionmaker[Session]
    busy: threading.Lock = field(default_factory=threading.Lock)
    """Held during a write."""

    def note(self, key_id: str) -> None:
        """Write the time of use; a failure is logged and costs nothing else."""
        if not self.busy.acquire(blocking=False):
            return
        stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < db_now() - _MINUTE)
        try:
            with self.writers.begin() as session:
                session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=db_now()))
        except SQLAlchemyError as error:
            get_logger(__name__).warning("last use of a key not recorded", reason=type(error).__name__)
        finally:
            self.busy.release()


@dataclass(frozen=True)
class Identified:
    """A caller, and whether the key's recorded last use is older than a minute."""

    caller: Caller
    last_use_is_stale: bool


def identify(request: Request, session: Session, wrong_keys: WrongKeys) -> Identified:
    """Find the caller by the request's key. Unknown, wrong, revoked and expired keys look alike.

    Raises:
        Unauthenticated: The request has no valid key.
        RateLimited: Too many wrong keys came from the address.
    """
    token = bearer_token(request)
    address = address_of(request)
    wrong_keys.check(address)
    key_id, presented = split_token(token)
    statement = select(ApiKey, Tenant.limits, db_now().label("now")).join(Tenant, Tenant.id == ApiKey.tenant_id)
    found = session.execute(statement.where(ApiKey.id == key_id)).one_or_none()
    if not same_secret(presented, found.ApiKey.secret_sha256 if found else None) or not found or not _is_active(found):
        wrong_keys.note(address)
        raise Unauthenticated(_INVALID)
    key: ApiKey = found.ApiKey
    limits = TenantLimits.model_validate(found.limits)
    caller = Caller(key.tenant_id, key.id, frozenset(key.scopes), limits, address)
    return Identified(caller, key.last_used_at is None or key.last_used_at < found.now - _MINUTE)


def _is_active(found: Row[Any]) -> bool:
    key, now = found.ApiKey, found.now
    return bool(key.revoked_at is None and (key.expires_at is None or now < key.expires_at))
