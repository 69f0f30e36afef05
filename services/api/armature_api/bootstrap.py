"""Entry point ``python -m armature_api.bootstrap``: migrate the database and issue the first key once.

Prints one JSON object, ``{"tenant_id": ..., "token": ...}``; both are null on every run after the first.
"""

from __future__ import annotations

import json
from typing import get_args

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.base import new_id
from armature.contracts.tenants import ApiKeyCreated, ApiKeyCreateRequest, Scope, TenantCreateRequest
from armature.db.migrate import upgrade
from armature.db.models import ApiKey, Installation
from armature.db.session import make_engine, make_session_factory
from armature.errors import NameTaken
from armature.logging import configure_logging
from armature_api.audit import trail
from armature_api.settings import ApiServiceSettings
from armature_api.tenants.service import create_key, create_tenant

FIRST_TENANT = "platform"


def bootstrap(settings: ApiServiceSettings) -> ApiKeyCreated | None:
    """Migrate the database and, if it is empty, create the installation and its first tenant and key.

    Returns:
        The key, which has every scope; None if there are keys already. Of two concurrent processes one issues it.
    """
    engine = make_engine(settings.database)
    sessions = make_session_factory(engine)
    trail.watch(sessions)
    try:
        upgrade(engine)
        return _issue_first_key(sessions)
    finally:
        engine.dispose()


def _issue_first_key(sessions: sessionmaker[Session]) -> ApiKeyCreated | None:
    try:
        with sessions.begin() as session:
            if session.scalars(select(exists().select_from(ApiKey))).one():
                return None
            session.add(Installation(id=new_id("installation")))
            trail.begin(session)
            tenant = create_tenant(session, TenantCreateRequest(name=FIRST_TENANT))
            key = create_key(session, tenant.id, ApiKeyCreateRequest(name="first", scopes=list(get_args(Scope))))
            trail.record(session, tenant.id, None, "bootstrap")
            return key
    except NameTaken:  # a concurrent process has committed its tenant and key
        return None


def main() -> None:
    """Run the bootstrap and print its result as JSON."""
    settings = ApiServiceSettings()
    configure_logging(settings.log, "bootstrap")
    key = bootstrap(settings)
    print(json.dumps({"tenant_id": key and key.tenant_id, "token": key and key.token}))


if __name__ == "__main__":
    main()
