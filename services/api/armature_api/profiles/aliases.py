"""Profile aliases: moves by compare-and-set, promotion gates, rollback and history."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from armature.contracts.aliases import AliasMoveRequest, AliasMoveView, AliasRollbackRequest, AliasView, CanarySplit
from armature.db.base import db_now
from armature.db.models import AliasMove, Profile, ProfileAlias
from armature.errors import Conflict, NotFound, VersionConflict
from armature_api.callers import Caller
from armature_api.kit.queries import numbered_below
from armature_api.profiles.gates import pass_gate
from armature_api.profiles.service import find_profile, find_version
from armature_api.relay.serving_snapshot import touch_serving


def move_alias(session: Session, caller: Caller, name: str, alias: str, request: AliasMoveRequest) -> AliasView:
    """Point an alias at a version. The profile's row is locked: concurrent moves are serialized.

    Raises:
        NotFound: The tenant has no such profile or version.
        VersionConflict: The alias does not point at ``if_version``.
        GateNotPassed: The evaluations of the version, or of the canary, do not pass the alias' gate.
    """
    profile = find_profile(session, caller.tenant_id, name, lock=True)
    version = find_version(session, profile, request.version, param="version")
    row = session.get(ProfileAlias, (profile.id, alias))
    _expect(request.if_version, row.version if row else 0)
    reports = pass_gate(session, profile, alias, version)
    if request.canary is not None:
        canary = find_version(session, profile, request.canary.version, param="canary.version")
        reports += pass_gate(session, profile, alias, canary)
    move = AliasMove(version=request.version, canary=_stored(request.canary), rollback=False, reports=reports)
    return _record(session, caller, profile, alias, move)


def roll_back(session: Session, caller: Caller, name: str, alias: str, request: AliasRollbackRequest) -> AliasView:
    """Point an alias back at its previous version. No gate applies: that version was live before.

    Raises:
        NotFound: The tenant has no such profile or alias.
        VersionConflict: The alias does not point at ``if_version``.
        Conflict: The alias has pointed at one version only.
    """
    profile = find_profile(session, caller.tenant_id, name, lock=True)
    row = find_alias(session, profile, alias)
    _expect(request.if_version, row.version)
    previous = _before(session, profile, row)
    if previous is None:
        raise Conflict("the alias has pointed at no other version before", code="nothing_to_roll_back")
    return _record(session, caller, profile, alias, AliasMove(version=previous, rollback=True, reports=[]))


def alias_view(profile: str, row: ProfileAlias) -> AliasView:
    """Build the alias' view."""
    return AliasView(
        profile=profile,
        alias=row.alias,
        version=row.version,
        canary=None if row.canary is None else CanarySplit.model_validate(row.canary),
        updated_at=int(row.updated_at),
    )


def find_alias(session: Session, profile: Profile, alias: str) -> ProfileAlias:
    """Find the profile's alias.

    Raises:
        NotFound: The profile has no such alias.
    """
    row = session.get(ProfileAlias, (profile.id, alias))
    if row is None:
        raise NotFound("there is no such alias")
    return row


def moves_before(
    session: Session, profile: Profile, alias: str, seq: int | None, limit: int
) -> tuple[list[AliasMoveView], bool]:
    """List the alias' moves below number ``seq`` (None: all), newest first, and whether more follow."""
    statement = select(AliasMove).where(AliasMove.profile_id == profile.id, AliasMove.alias == alias)
    moves, has_more = numbered_below(session, statement, AliasMove.seq, seq, limit)
    return [_move_view(move) for move in moves], has_more


def _expect(if_version: int | None, current: int) -> None:
    if if_version is not None and if_version != current:
        raise VersionConflict(f"the alias points at version {current}", param="if_version")


def _before(session: Session, profile: Profile, row: ProfileAlias) -> int | None:
    """Return the previous version; None if there is none. Two rollbacks in a row go back two steps."""
    path: list[int] = []
    moves = select(AliasMove).where(AliasMove.profile_id == profile.id, AliasMove.alias == row.alias)
    for move in session.scalars(moves.order_by(AliasMove.seq)):
        if move.rollback:
            path.pop()
        elif not path or path[-1] != move.version:
            path.append(move.version)
    return path[-2] if len(path) > 1 else None


def _record(session: Session, caller: Caller, profile: Profile, alias: str, move: AliasMove) -> AliasView:
    row = session.get(ProfileAlias, (profile.id, alias)) or ProfileAlias(profile_id=profile.id, alias=alias)
    row.version, row.canary = move.version, move.canary
    row.updated_at = session.scalars(select(db_now())).one()
    latest = select(func.max(AliasMove.seq)).where(AliasMove.profile_id == profile.id, AliasMove.alias == alias)
    move.profile_id, move.alias, move.key_id = profile.id, alias, caller.key_id
    move.seq, move.created_at = (session.scalar(latest) or 0) + 1, row.updated_at
    session.add_all((row, move))
    touch_serving(session)
    return alias_view(profile.name, row)


def _stored(canary: CanarySplit | None) -> dict[str, float] | None:
    return None if canary is None else canary.model_dump(mode="json")


def _move_view(move: AliasMove) -> AliasMoveView:
    return AliasMoveView.model_validate(
        {
            "seq": move.seq,
            "version": move.version,
            "canary": move.canary,
            "rollback": move.rollback,
            "key_id": move.key_id,
            "reports": move.reports,
            "created_at": int(move.created_at),
        }
    )
