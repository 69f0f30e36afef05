"""Tables of a platform in use for months, filled by PostgreSQL itself in seconds.

Jobs are a minute apart. A few tenants have many and most have few: of 200, tenant k has the share
log((k + 2) / (k + 1)) / log(201), so the caller's, number 0, has 13 %. The newest tenth of the jobs is queued and
unsent; the ones before run; of the rest most succeeded, each with an artifact.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.artifacts import ArtifactManifest, ArtifactRef, BlobRef, Parent, Producer, ReportMetadata
from armature.contracts.base import canonical_json, digest
from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.base import ArtifactInput, BaseSpec, FileInput
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.contracts.specs.harm_vector import HarmVectorBuildSpec

TENANTS = 200
EVENTS_PER_JOB = 10
WAITING_SHARE = 10
"""One in this many jobs is queued."""
RUNNING = 32
TEAMS = 50
"""Number of values of ``team`` in the jobs' metadata."""

_DIGEST = digest("any")
_SPECS: tuple[BaseSpec, ...] = (
    HarmVectorBuildSpec(base_model="mdl_1", harmful_pairs="ds_1"),
    ArmTrainSpec(base_model="mdl_1", pairs="ds_1"),
    EvaluationRunSpec(base_model="mdl_1", lexicon="ds_1", prompts="ds_2"),
)
_INPUTS = {
    "base_model": ArtifactInput(id="art_1", ref=ArtifactRef(digest=_DIGEST, manifest_key="manifest")),
    "pairs": FileInput(id="file_1", key="blob", sha256=_DIGEST, size=1 << 20, filename="pairs.jsonl"),
}
_MANIFEST = ArtifactManifest(
    kind="report",
    files=[BlobRef(path="report.json", sha256=_DIGEST, size=1 << 12)],
    parents=[Parent(role=role, digest=_DIGEST) for role in _INPUTS],
    metadata=ReportMetadata(subject={"base_model": "mdl_1"}, metrics={"attack_success_rate": 0.02}),
    producer=Producer(kind="evaluation.run", spec=_SPECS[-1].provenance(), version="0"),
)

_TENANTS = """
INSERT INTO tenants (id, name, limits, served_at, created_at)
SELECT 'ten_' || lpad(k::text, 28, '0'), 'team-' || k, '{}', k, 0 FROM generate_series(1, :tenants - 1) k"""

_JOBS = """
INSERT INTO jobs (id, tenant_id, kind, queue, spec, inputs, max_attempts, shared, metadata, state, pause_requested,
    attempt, fence, worker, lease_until, phase, step, total_steps, percent, last_event_seq, started_at, finished_at,
    created_at)
SELECT 'job_' || lpad(to_hex((created_at * 1000)::bigint), 12, '0') || substr(md5(n::text), 1, 16),
    CASE k WHEN 0 THEN :owner ELSE 'ten_' || lpad(k::text, 28, '0') END,
    spec ->> 'kind', 'gpu', spec, CAST(:inputs AS jsonb), 3, false,
    jsonb_build_object('team', 'team-' || n % :teams, 'ticket', 'T-' || n), state, false,
    (state <> 'queued')::int, (state <> 'queued')::int, CASE WHEN state = 'running' THEN 'worker:1' END,
    CASE WHEN state = 'running' THEN created_at + 864000 END, CASE state WHEN 'succeeded' THEN 'done' ELSE state END,
    0, 0, 0, :events, CASE WHEN state <> 'queued' THEN created_at END,
    CASE WHEN state IN ('succeeded', 'failed', 'cancelled') THEN created_at + 30 END, created_at
FROM (
    SELECT n, extract(epoch FROM now())::double precision - 60.0 * (:jobs - n) AS created_at,
        CAST(:specs AS jsonb) -> (n % jsonb_array_length(CAST(:specs AS jsonb))) AS spec,
        floor(power(:tenants + 1, n * 0.6180339887498949 % 1))::int - 1 AS k,
        CASE WHEN n > :jobs - :waiting THEN 'queued'
            WHEN n > :jobs - :waiting - :running THEN 'running'
            WHEN n % 200 = 0 THEN 'paused' WHEN n % 10 = 1 THEN 'failed' WHEN n % 10 = 2 THEN 'cancelled'
            ELSE 'succeeded' END AS state
    FROM generate_series(1, :jobs) n
) numbered"""

_EVENTS = """
INSERT INTO job_events (job_id, seq, level, type, message, data, created_at)
SELECT id, seq, 'info', CASE WHEN seq < 3 THEN 'message' ELSE 'metrics' END, 'step',
    jsonb_build_object('attempt', 1, 'step', seq, 'train_loss', 0.5), created_at + seq
FROM jobs, generate_series(1, :events) seq"""

_ARTIFACTS = """
INSERT INTO artifacts (id, tenant_id, job_id, name, kind, digest, manifest_key, manifest, bytes, shared, created_at)
SELECT 'art_' || substr(id, 5), tenant_id, id, 'report', 'report', encode(sha256(id::bytea), 'hex'), 'manifest',
    CAST(:manifest AS jsonb), 4096, false, created_at
FROM jobs WHERE state = 'succeeded'"""

_PARENTS = """
INSERT INTO artifact_parents (artifact_id, role, digest)
SELECT id, role, encode(sha256((id || role)::bytea), 'hex') FROM artifacts, unnest(ARRAY['base_model', 'pairs']) role"""

_LABELS = """
INSERT INTO job_labels (job_id, key, tenant_id, value)
SELECT id, pair.key, tenant_id, pair.value FROM jobs, jsonb_each_text(metadata) pair"""

_FILLED = ("tenants", "jobs", "job_labels", "job_events", "artifacts", "artifact_parents")


def fill(sessions: sessionmaker[Session], owner: str, jobs: int, tenants: int = TENANTS) -> None:
    """Insert ``jobs`` jobs of ``tenants`` tenants; the existing tenant ``owner`` has the most of them."""
    values: dict[str, Any] = {
        "owner": owner,
        "jobs": jobs,
        "tenants": tenants,
        "waiting": jobs // WAITING_SHARE,
        "running": min(RUNNING, jobs // WAITING_SHARE),
        "events": EVENTS_PER_JOB,
        "teams": TEAMS,
        "specs": canonical_json([spec.model_dump(mode="json") for spec in _SPECS]).decode(),
        "inputs": canonical_json({role: given.model_dump(mode="json") for role, given in _INPUTS.items()}).decode(),
        "manifest": canonical_json(_MANIFEST.model_dump(mode="json")).decode(),
    }
    with sessions.begin() as session:
        for statement in (_TENANTS, _JOBS, _LABELS, _EVENTS, _ARTIFACTS, _PARENTS):
            session.execute(text(statement), values)
    engine: Engine = sessions.kw["bind"]
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for table in _FILLED:  # autovacuum does it minutes later
            connection.execute(text(f"VACUUM (ANALYZE) {table}"))
