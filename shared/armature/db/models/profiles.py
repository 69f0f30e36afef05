"""Tables of profiles, their versions and aliases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from armature.contracts.base import new_id
from armature.db.base import Base, Id, Json, db_now


class Profile(Base):
    """A named series of profile versions."""

    __tablename__ = "profiles"
    __table_args__ = (UniqueConstraint("tenant_id", "name"), Index(None, "tenant_id", "created_at", "id"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("profile"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class ProfileVersion(Base):
    """An immutable combination of artifacts and bounds; ``manifest`` is what the decoder loads."""

    __tablename__ = "profile_versions"

    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(64))
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    manifest: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class ProfileAlias(Base):
    """A movable pointer to a version; moving it puts the version into service."""

    __tablename__ = "profile_aliases"

    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int]
    canary: Mapped[dict[str, Any] | None] = mapped_column(Json)
    updated_at: Mapped[float] = mapped_column(Double, default=db_now(), onupdate=db_now())


class AliasMove(Base):
    """An entry of an alias' history; ``seq`` counts 1, 2, 3, ... within the alias."""

    __tablename__ = "alias_moves"

    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]
    canary: Mapped[dict[str, Any] | None] = mapped_column(Json)
    rollback: Mapped[bool]
    key_id: Mapped[str] = mapped_column(Id)
    reports: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class AliasGate(Base):
    """The condition on evaluations before the alias moves; it can be set before the alias exists."""

    __tablename__ = "alias_gates"

    profile_id: Mapped[str] = mapped_column(ForeignKey("profiles.id", ondelete="CASCADE"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    gate: Mapped[dict[str, Any]] = mapped_column(Json)
