"""Promotion gates: an alias moves only to a version whose evaluations keep the gate's rules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from armature.contracts.aliases import AliasGate, AliasGateView, GateRule
from armature.contracts.artifacts import ReportMetadata
from armature.contracts.base import Contract
from armature.contracts.profiles import ProfileManifest
from armature.contracts.specs.evaluation import METRICS, data_reference
from armature.db import models
from armature.db.models import Artifact, Profile, ProfileVersion
from armature.errors import GateNotPassed, InvalidRequest
from armature_api.artifacts.service import manifest_of
from armature_api.inputs.references import find_rows
from armature_api.kit.queries import not_found

_KNOWN = tuple(chain(*METRICS.values()))


def find_gate(session: Session, profile: Profile, alias: str) -> AliasGateView:
    """Find the alias' gate.

    Raises:
        NotFound: The alias has no gate.
    """
    row = session.get(models.AliasGate, (profile.id, alias))
    if row is None:
        raise not_found(models.AliasGate)
    return AliasGateView.model_validate({"profile": profile.name, "alias": alias, **row.gate})


def set_gate(session: Session, profile: Profile, alias: str, gate: AliasGate) -> AliasGateView:
    """Set the alias' gate, replacing an earlier one. It applies to later moves.

    Raises:
        InvalidRequest: A rule names a metric that evaluations do not report.
        NotFound, WrongKind: A data set does not exist, or an evaluation can not use it in its role.
    """
    for index, rule in enumerate(gate.rules):
        if rule.metric not in _KNOWN:
            known = ", ".join(_KNOWN)
            raise InvalidRequest(
                f"evaluations report no such metric; they report {known}", param=f"rules.{index}.metric"
            )
    for role, id in gate.datasets.items():
        find_rows(session, profile.tenant_id, data_reference(role, id, f"datasets.{role}"))
    session.merge(models.AliasGate(profile_id=profile.id, alias=alias, gate=gate.model_dump(mode="json")))
    session.flush()
    return find_gate(session, profile, alias)


def remove_gate(session: Session, profile: Profile, alias: str) -> None:
    """Remove the alias' gate, if it has one."""
    row = session.get(models.AliasGate, (profile.id, alias))
    if row is not None:
        session.delete(row)


def pass_gate(session: Session, profile: Profile, alias: str, version: ProfileVersion) -> list[str]:
    """Check a version against the alias' gate and return the ids of the reports that count; no gate: none.

    The newest report of each metric counts, so that a later evaluation corrects an earlier one.

    Raises:
        GateNotPassed: A rule is not kept; the message names each such rule and the measured value.
    """
    row = session.get(models.AliasGate, (profile.id, alias))
    if row is None:
        return []
    gate, manifest = AliasGate.model_validate(row.gate), ProfileManifest.model_validate(version.manifest)
    measured: dict[str, tuple[Any, str]] = {}
    for id, metrics in _reports(session, profile.tenant_id, manifest, gate):
        for metric, value in metrics.items():
            measured.setdefault(metric, (value, id))
    broken = [_complaint(rule, measured) for rule in gate.rules if not _keeps(rule, measured)]
    if broken:
        raise GateNotPassed(f"version {version.version} does not pass: {'; '.join(broken)}", param="version")
    return sorted({measured[rule.metric][1] for rule in gate.rules})


def _reports(
    session: Session, tenant_id: str, version: ProfileManifest, gate: AliasGate
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and metrics of each evaluation of exactly this version with its own guidance, newest first."""
    subject = Artifact.manifest["metadata"]["subject"]
    evaluations = (
        select(Artifact)
        .where(Artifact.tenant_id == tenant_id, Artifact.kind == "report")
        .where(subject["model_digest"].as_string() == version.backbone.model_digest)
        .order_by(Artifact.created_at.desc(), Artifact.id.desc())
    )
    for artifact in session.scalars(evaluations):
        manifest = manifest_of(artifact)
        report, spec = manifest.metadata, manifest.producer.spec
        assert isinstance(report, ReportMetadata)
        pinned = all(spec.get(role) == id for role, id in gate.datasets.items())
        if pinned and _is_about(report.subject, spec.get("guidance", {}), version):
            yield artifact.id, report.metrics


def _is_about(subject: dict[str, Any], guided: dict[str, Any], version: ProfileManifest) -> bool:
    """Tell whether a report's subject has the version's parts and was guided by the version's defaults."""
    backbone, defaults = version.backbone, version.guidance
    wanted = {
        "harm_vector": backbone.harm_vector_digest,
        "harm_scale": backbone.harm_scale,
        "arm": version.arm.digest if version.arm else None,
        "arm_backbone": version.arm_backbone.digest if version.arm_backbone else None,
        "chat": version.chat.as_subject() if version.chat else None,
        **{name: _as_evaluated(stage) for name, stage in version.stages().items()},
    }
    found = {part: subject.get(part) for part in wanted}
    found["harm_scale"] = subject.get("harm_scale") if subject.get("harm_vector") else 0.0
    if found != wanted:
        return False
    given = {"safe_set_mode": "soft", **guided}
    return all(given.get(name) == getattr(defaults, name) for name in _read_by(version))


def _as_evaluated(stage: Contract | None) -> dict[str, Any] | None:
    """A stage as a report's subject has it: bounds are for requests, and an evaluation has none."""
    return None if stage is None else stage.model_dump(mode="json", exclude={"bounds"})


def _read_by(version: ProfileManifest) -> list[str]:
    """List the guidance fields that have an effect on the version's parts."""
    if version.arm is not None:
        return ["guidance_weight", "safe_set_delta", "safe_set_mode"]
    return ["safe_set_delta"] if version.sda else []


def _keeps(rule: GateRule, measured: dict[str, tuple[Any, str]]) -> bool:
    value, _ = measured.get(rule.metric, (None, ""))
    return isinstance(value, int | float) and not isinstance(value, bool) and rule.admits(value)


def _complaint(rule: GateRule, measured: dict[str, tuple[Any, str]]) -> str:
    if rule.metric not in measured:
        return f"no evaluation of it under its own guidance has the metric {rule.metric}"
    bounds = {"at most": rule.at_most, "at least": rule.at_least}
    allowed = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    value, report = measured[rule.metric]
    return f"{rule.metric} is {value} in report {report}, and the gate requires {allowed}"
