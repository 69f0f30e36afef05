"""Idempotency: a POST with an ``Idempotency-Key`` does its work once; repeats get the first response.

A route depends on :data:`OnceDep` and passes its work to :meth:`Once.answer`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import WithJsonSchema
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from armature.contracts.base import Contract, View, digest
from armature.contracts.tenants import ApiKeyCreated
from armature.db.models import IdempotencyKey
from armature.errors import AnswerNotKept, IdempotencyInProgress, IdempotencyKeyReused, InvalidIdempotencyKey
from armature_api.deps import CallerDep, ResourcesDep

HEADER = "Idempotency-Key"
_SCHEMA = {"type": "string", "pattern": r"^[\x20-\x7e]{1,255}$"}
_LOCK_NOT_AVAILABLE = "55P03"

Answer = TypeVar("Answer", bound=View)
Asked = Contract | Mapping[str, Any]
"""The content by which two requests with one key are compared."""
NOTHING: Asked = {}
"""The content of a request without a body."""
_SECRET: frozenset[type[View]] = frozenset({ApiKeyCreated})
"""Views that hold a secret."""


@dataclass(frozen=True)
class Once:
    """A request's idempotency key, valid for its tenant, method and path; no key: no deduplication.

    ``patience`` is how many seconds to wait for a concurrent request with the key on PostgreSQL; SQLite lets one
    request write at a time anyway.
    """

    tenant_id: str
    key: str | None
    operation: str
    response: Response
    patience: float

    def answer(self, session: Session, kind: type[Answer], asked: Asked, work: Callable[[], Answer]) -> Answer:
        """Run ``work`` and keep its answer in the same transaction, or return the answer kept before.

        Work that fails rolls the key back, so a corrected request may reuse the key. Of an answer that holds a secret
        only the id is kept.

        Raises:
            IdempotencyKeyReused: The key was used with another request before.
            IdempotencyInProgress: The first request is still being served.
            AnswerNotKept: The first request was served, and its answer held a secret.
        """
        if self.key is None:
            return work()
        row = IdempotencyKey(
            tenant_id=self.tenant_id, id=digest([self.operation, self.key]), request_digest=_digest(asked)
        )
        if not self._take_key(session, row):
            return self._replay(session, kind, row)
        done = work()
        headers = {name: value for name, value in self.response.headers.items() if name == "location"}
        kept = {"id"} if kind in _SECRET else None
        row.answer = {"body": done.model_dump(mode="json", include=kept), "headers": headers}
        return done

    def _take_key(self, session: Session, row: IdempotencyKey) -> bool:
        """Insert the key's row; False if the key was used before."""
        waits_for_locks = session.get_bind().dialect.name == "postgresql"
        if waits_for_locks:
            session.execute(text(f"SET LOCAL lock_timeout = '{round(self.patience * 1000)}ms'"))
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:
            return False
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                message = "another request with this Idempotency-Key is being served"
                raise IdempotencyInProgress(message, param=HEADER) from error
            raise
        if waits_for_locks:
            session.execute(text("SET LOCAL lock_timeout TO DEFAULT"))
        return True

    def _replay(self, session: Session, kind: type[Answer], row: IdempotencyKey) -> Answer:
        earlier = session.get_one(IdempotencyKey, (row.tenant_id, row.id))
        if earlier.request_digest != row.request_digest:
            raise IdempotencyKeyReused("this Idempotency-Key was used with another request before", param=HEADER)
        assert earlier.answer is not None  # it was committed together with its answer
        if kind in _SECRET:
            first = earlier.answer["body"]["id"]
            raise AnswerNotKept(f"the first request made {first}, whose secret is not kept: revoke it and make another")
        self.response.headers.update({**earlier.answer["headers"], "Idempotent-Replayed": "true"})
        return kind.model_validate(earlier.answer["body"])


def _once(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    response: Response,
    idempotency_key: Annotated[
        Annotated[str, WithJsonSchema(_SCHEMA)] | None, Header(description="repeating a request with its key is safe")
    ] = None,
) -> Once:
    key = idempotency_key
    if key is not None and re.fullmatch(_SCHEMA["pattern"], key) is None:
        raise InvalidIdempotencyKey(f"{HEADER} takes 1 to 255 printable ASCII characters", param=HEADER)
    operation = f"{request.method} {request.url.path}"
    return Once(caller.tenant_id, key, operation, response, resources.idempotency_patience)


OnceDep = Annotated[Once, Depends(_once)]


def _digest(asked: Asked) -> str:
    return digest(asked.model_dump(mode="json") if isinstance(asked, Contract) else dict(asked))
