"""Tables of files, data sets, artifacts and the names of base models."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Double, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from armature.contracts.base import new_id
from armature.db.base import Base, Id, Json, db_now, partial_index


class File(Base):
    """An uploaded file, whose bytes are a blob. ``scan`` is the scan's report on a file of rows.

    A file flagged ``harmful`` can be read by keys with the scope for it only, and used by jobs that train on harm only.
    """

    __tablename__ = "files"
    __table_args__ = (Index(None, "tenant_id", "created_at", "id"), Index(None, "tenant_id", "sha256"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("file"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    scan: Mapped[dict[str, Any] | None] = mapped_column(Json)
    harmful: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class Dataset(Base):
    """A file of valid rows, made by an upload or by the job ``job_id``.

    ``attribute`` is the attribute of the rows that name none.
    """

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "tenant_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("dataset"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(64))
    format: Mapped[str] = mapped_column(String(32))
    attribute: Mapped[str | None] = mapped_column(String(64))
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    rows: Mapped[int]
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class Artifact(Base):
    """A published artifact. ``(job_id, name)`` is unique: a job publishes each output once.

    After ``expires_at`` no request finds it; the sweep deletes it once nothing refers to it.
    """

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("job_id", "name"),
        Index(None, "tenant_id", "created_at", "id"),
        Index(None, "tenant_id", "kind", "created_at", "id"),
        # An index-only scan sums a tenant's bytes; row security needs the column "shared".
        Index("ix_artifacts_stored", "tenant_id", postgresql_include=["bytes", "shared"]),
        partial_index("ix_artifacts_shared", "created_at", "id", where="shared"),
        partial_index("ix_artifacts_expiring", "tenant_id", "expires_at", where="expires_at IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("artifact"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(32))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    manifest_key: Mapped[str] = mapped_column(String(512))
    manifest: Mapped[dict[str, Any]] = mapped_column(Json)
    bytes: Mapped[int] = mapped_column(BigInteger)
    shared: Mapped[bool] = mapped_column(default=False)
    expires_at: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class ArtifactParent(Base):
    """An input of an artifact: a parent of its manifest, as an indexed row to look up descendants."""

    __tablename__ = "artifact_parents"

    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(String(64), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), index=True)


class BaseModel(Base):
    """A name for a checkpoint artifact."""

    __tablename__ = "base_models"
    __table_args__ = (UniqueConstraint("tenant_id", "name"), Index(None, "tenant_id", "created_at", "id"))

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=lambda: new_id("base_model"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(64))
    artifact_id: Mapped[str] = mapped_column(ForeignKey("artifacts.id"))
    shared: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class BaseModelAlias(Base):
    """A tenant's movable name for a base model."""

    __tablename__ = "base_model_aliases"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"), index=True)
    updated_at: Mapped[float] = mapped_column(Double, default=db_now())
