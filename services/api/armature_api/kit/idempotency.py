"""A POST with an ``Idempotency-Key`` does its work once; a repetition gets the answer that the first one got.

A route takes :data:`OnceDep` and hands its work to :meth:`Once.answer`.
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
from armature_api.deps import CallerDep

HEADER = "Idempotency-Key"
_SCHEMA = {"type": "string", "pattern": r"^[\x20-\x7e]{1,255}$"}
PATIENCE = "5s"
"""How long a request waits for another one with its key, on PostgreSQL; SQLite lets one request write at a time."""
_LOCK_NOT_AVAILABLE = "55P03"

Answer = TypeVar("Answer", bound=View)
Asked = Contract | Mapping[str, Any]
"""What tells two requests apart."""
NOTHING: Asked = {}
"""Of a request without a body."""
_SECRET: frozenset[type[View]] = frozenset({ApiKeyCreated})
"""Answers that hold a secret."""


@dataclass(frozen=True)
class Once:
    """The request's key, within its tenant, method and path; without one the work is done every time."""

    tenant_id: str
    key: str | None
    operation: str
    response: Response

    def answer(self, session: Session, kind: type[Answer], asked: Asked, work: Callable[[], Answer]) -> Answer:
        """Do the work, in whose transaction its answer is kept; or give the answer kept.

        Work that fails rolls the key back, so the corrected request may come with the same one. Of an answer that holds
        a secret only the id is kept.

        Raises:
            IdempotencyKeyReused: The key came with another request before.
            IdempotencyInProgress: The first request is still being served.
            AnswerNotKept: The first request was served, and its answer held a secret.
        """
        if self.key is None:
            return work()
        row = IdempotencyKey(
            tenant_id=self.tenant_id, id=digest([self.operation, self.key]), request_digest=_digest(asked)
        )
        if not _is_new(session, row):
            return self._replay(session, kind, row)
        done = work()
        headers = {name: value for name, value in self.response.headers.items() if name == "location"}
        kept = {"id"} if kind in _SECRET else None
        row.answer = {"body": done.model_dump(mode="json", include=kept), "headers": headers}
        return done

    def _replay(self, session: Session, kind: type[Answer], row: IdempotencyKey) -> Answer:
        earlier = session.get_one(IdempotencyKey, (row.tenant_id, row.id))
        if earlier.request_digest != row.request_digest:
            raise IdempotencyKeyReused("this Idempotency-Key came with another request before", param=HEADER)
        assert earlier.answer is not None  # it was committed together with its answer
        if kind in _SECRET:
            made = earlier.answer["body"]["id"]
            raise AnswerNotKept(f"the first request made {made}, whose secret is not kept: revoke it and make another")
        self.response.headers.update({**earlier.answer["headers"], "Idempotent-Replayed": "true"})
        return kind.model_validate(earlier.answer["body"])


def _once(
    request: Request,
    caller: CallerDep,
    response: Response,
    idempotency_key: Annotated[
        Annotated[str, WithJsonSchema(_SCHEMA)] | None, Header(description="repeating a request with its key is safe")
    ] = None,
) -> Once:
    key = idempotency_key
    if key is not None and re.fullmatch(_SCHEMA["pattern"], key) is None:
        raise InvalidIdempotencyKey(f"{HEADER} takes 1 to 255 printable ASCII characters", param=HEADER)
    return Once(caller.tenant_id, key, f"{request.method} {request.url.path}", response)


OnceDep = Annotated[Once, Depends(_once)]


def _digest(asked: Asked) -> str:
    return digest(asked.model_dump(mode="json") if isinstance(asked, Contract) else dict(asked))


def _is_new(session: Session, row: IdempotencyKey) -> bool:
    """Whether the key was unknown; if so it is taken from now on."""
    waits_for_locks = session.get_bind().dialect.name == "postgresql"
    if waits_for_locks:
        session.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
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
