"""The control plane's tables, a module per subject.

Every row that belongs to a tenant carries ``tenant_id``; every query filters by it. Times are seconds since the epoch
by the database's clock (:class:`armature.db.base.db_now`). Importing this package registers every table.
"""

from armature.db.models.artifacts import Artifact, ArtifactParent, BaseModel, BaseModelAlias, Dataset, File
from armature.db.models.jobs import LEASED_STATES, Job, JobEvent, JobLabel
from armature.db.models.profiles import AliasGate, AliasMove, Profile, ProfileAlias, ProfileVersion
from armature.db.models.tenants import ApiKey, AuditEntry, AuditHead, IdempotencyKey, Installation, Tenant

__all__ = [
    "LEASED_STATES",
    "AliasGate",
    "AliasMove",
    "ApiKey",
    "Artifact",
    "ArtifactParent",
    "AuditEntry",
    "AuditHead",
    "BaseModel",
    "BaseModelAlias",
    "Dataset",
    "File",
    "IdempotencyKey",
    "Installation",
    "Job",
    "JobEvent",
    "JobLabel",
    "Profile",
    "ProfileAlias",
    "ProfileVersion",
    "Tenant",
]
