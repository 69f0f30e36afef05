"""The serving snapshot: built from the tables; the relay alone writes it to the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from armature.contracts.profiles import ProfileManifest
from armature.contracts.serving import SNAPSHOT_KEY, ServedCanary, ServedKey, ServedModel, ServedTenant, ServingSnapshot
from armature.contracts.tenants import TenantLimits
from armature.db.base import db_now
from armature.db.models import ApiKey, Installation, Profile, ProfileAlias, ProfileVersion, Tenant
from armature.storage.base import ArtifactStore, ObjectNotFound


def touch_serving(session: Session) -> None:
    """Raise the serving revision in the session's transaction: keys, limits or aliases changed."""
    session.execute(update(Installation).values(serving_revision=Installation.serving_revision + 1))


def publish_snapshot(session: Session, store: ArtifactStore) -> bool:
    """Write the snapshot if the stored one differs; return whether it was written.

    Contents are compared, not revisions: a key's expiry changes the snapshot without a change of the tables.
    """
    snapshot = build_snapshot(session).model_dump_json().encode()
    if snapshot == _stored(store):
        return False
    store.put_bytes(SNAPSHOT_KEY, snapshot)
    return True


def build_snapshot(session: Session) -> ServingSnapshot:
    """Build the snapshot from the tables. The revision is read first: a concurrent change raises it."""
    installation = session.execute(select(Installation.id, Installation.serving_revision)).one()
    keys, models = _keys(session), _models(session)
    tenants = session.execute(select(Tenant.id, Tenant.name, Tenant.limits).order_by(Tenant.id)).all()
    return ServingSnapshot(
        installation=installation.id,
        revision=installation.serving_revision,
        tenants=[
            ServedTenant(id=id, name=name, limits=TenantLimits.model_validate(limits), keys=keys[id], models=models[id])
            for id, name, limits in tenants
            if id in keys
        ],
    )


def _keys(session: Session) -> dict[str, list[ServedKey]]:
    """Collect, by tenant, the keys with scope ``generate`` that are neither revoked nor expired."""
    active = select(ApiKey).where(
        ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now())
    )
    keys: defaultdict[str, list[ServedKey]] = defaultdict(list)
    for key in session.scalars(active.order_by(ApiKey.id)):
        if "generate" in key.scopes:
            expires_at = None if key.expires_at is None else int(key.expires_at)
            served = ServedKey.model_validate(
                {"id": key.id, "secret_sha256": key.secret_sha256, "scopes": key.scopes, "expires_at": expires_at}
            )
            keys[key.tenant_id].append(served)
    return keys


def _models(session: Session) -> defaultdict[str, list[ServedModel]]:
    """Collect, by tenant, the aliases with the manifests of the versions that they serve."""
    versions = {(row.profile_id, row.version): row for row in session.scalars(_served_versions())}
    aliases = (
        select(Profile.tenant_id, Profile.name, ProfileAlias)
        .join(ProfileAlias, ProfileAlias.profile_id == Profile.id)
        .order_by(Profile.name, ProfileAlias.alias)
    )
    models: defaultdict[str, list[ServedModel]] = defaultdict(list)
    for tenant_id, profile, alias in session.execute(aliases):
        served = _served(versions[alias.profile_id, alias.version])
        models[tenant_id].append(
            ServedModel(profile=profile, alias=alias.alias, canary=_canary(alias, versions), **served)
        )
    return models


def _served_versions() -> Select[ProfileVersion]:
    """Select the versions that an alias, or its canary, points at."""
    alias = ProfileAlias
    of_alias = alias.profile_id == ProfileVersion.profile_id
    named = or_(alias.version == ProfileVersion.version, alias.canary["version"].as_integer() == ProfileVersion.version)
    return select(ProfileVersion).where(select(alias).where(of_alias, named).exists())


def _canary(alias: ProfileAlias, versions: Mapping[tuple[str, int], ProfileVersion]) -> ServedCanary | None:
    if alias.canary is None:
        return None
    served = _served(versions[alias.profile_id, alias.canary["version"]])
    return ServedCanary(weight=alias.canary["weight"], **served)


def _served(version: ProfileVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "created_at": int(version.created_at),
        "manifest": ProfileManifest.model_validate(version.manifest),
    }


def _stored(store: ArtifactStore) -> bytes | None:
    try:
        return store.get_bytes(SNAPSHOT_KEY)
    except ObjectNotFound:
        return None
