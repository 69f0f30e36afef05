"""The serving snapshot: built from the tables, written to the store by the relay alone."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from armature.contracts.profiles import ProfileManifest
from armature.contracts.serving import SNAPSHOT_KEY, ServedKey, ServedModel, ServedTenant, ServingSnapshot
from armature.db.base import db_now
from armature.db.models import ApiKey, Installation, Profile, ProfileAlias, ProfileVersion, Tenant
from armature.storage.base import ArtifactStore, ObjectNotFound


def touch_serving(session: Session) -> None:
    """Note, in the caller's transaction, that what is served to whom changed."""
    session.execute(update(Installation).values(serving_revision=Installation.serving_revision + 1))


def publish_snapshot(session: Session, store: ArtifactStore) -> bool:
    """Write the snapshot if the store holds another one; whether it did.

    The relay is the only caller. Contents are compared, not only revisions, since a key's expiry changes the snapshot
    without anybody touching it.
    """
    snapshot = build_snapshot(session).model_dump_json().encode()
    if snapshot == _stored(store):
        return False
    store.put_bytes(SNAPSHOT_KEY, snapshot)
    return True


def build_snapshot(session: Session) -> ServingSnapshot:
    """What the tables say now. The revision is read first: a change that slips in between raises it again."""
    installation = session.execute(select(Installation.id, Installation.serving_revision)).one()
    keys, models = _keys(session), _models(session)
    tenants = session.execute(select(Tenant.id, Tenant.name).order_by(Tenant.id)).all()
    return ServingSnapshot(
        installation=installation.id,
        revision=installation.serving_revision,
        tenants=[
            ServedTenant(id=id, name=name, keys=keys[id], models=models[id]) for id, name in tenants if id in keys
        ],
    )


def _keys(session: Session) -> dict[str, list[ServedKey]]:
    """Keys by tenant that may generate and are neither revoked nor expired."""
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
    """Aliases by tenant, each with the manifest of the version that it points at."""
    aliases = (
        select(Profile.tenant_id, Profile.name, ProfileAlias.alias, ProfileVersion)
        .join(ProfileAlias, ProfileAlias.profile_id == Profile.id)
        .join(
            ProfileVersion,
            (ProfileVersion.profile_id == Profile.id) & (ProfileVersion.version == ProfileAlias.version),
        )
        .order_by(Profile.name, ProfileAlias.alias)
    )
    models: defaultdict[str, list[ServedModel]] = defaultdict(list)
    for tenant_id, profile, alias, version in session.execute(aliases):
        models[tenant_id].append(
            ServedModel(
                profile=profile,
                alias=alias,
                version=version.version,
                created_at=int(version.created_at),
                manifest=ProfileManifest.model_validate(version.manifest),
            )
        )
    return models


def _stored(store: ArtifactStore) -> bytes | None:
    try:
        return store.get_bytes(SNAPSHOT_KEY)
    except ObjectNotFound:
        return None
