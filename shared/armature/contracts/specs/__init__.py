"""The job specs: one module per method, one union over them. ``kind`` is the discriminator."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, TypeAdapter, WithJsonSchema

from armature.contracts.specs.arm import ArmTrainSpec
from armature.contracts.specs.arm_export import ArmExportSpec
from armature.contracts.specs.arm_extend import ArmExtendSpec
from armature.contracts.specs.arm_import import ArmImportSpec
from armature.contracts.specs.base import ArtifactInput, BaseSpec, FileInput
from armature.contracts.specs.base_model import BaseModelImportSpec
from armature.contracts.specs.checkpoint_export import CheckpointExportSpec
from armature.contracts.specs.evaluation import EvaluationRunSpec
from armature.contracts.specs.harm_vector import HarmVectorBuildSpec
from armature.contracts.specs.harm_vector_sweep import HarmVectorSweepSpec
from armature.contracts.specs.pairs import PairsGenerateSpec

JobSpec = Annotated[
    BaseModelImportSpec
    | HarmVectorBuildSpec
    | HarmVectorSweepSpec
    | CheckpointExportSpec
    | ArmTrainSpec
    | ArmExtendSpec
    | ArmExportSpec
    | ArmImportSpec
    | EvaluationRunSpec
    | PairsGenerateSpec,
    Field(discriminator="kind"),
]
JobInput = Annotated[ArtifactInput | FileInput, Field(discriminator="type")]

SPECS: dict[str, type[BaseSpec]] = {spec.model_fields["kind"].default: spec for spec in get_args(get_args(JobSpec)[0])}
"""The spec class by kind, derived from the union so that the two can not differ."""


def _known(kind: str) -> str:
    if kind not in SPECS:
        raise ValueError(f"must be one of {', '.join(SPECS)}")
    return kind


JobKind = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(SPECS)})]
"""The name of one of the specs."""

RESUMABLE_KINDS = frozenset(kind for kind, spec in SPECS.items() if spec.resumable)
"""Kinds whose jobs save checkpoints."""

_spec: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
_inputs: TypeAdapter[dict[str, JobInput]] = TypeAdapter(dict[str, JobInput])


def parse_spec(value: Any) -> JobSpec:
    """Parse a spec from its JSON value.

    Raises:
        pydantic.ValidationError: The value is not a valid spec.
    """
    return _spec.validate_python(value)


def parse_inputs(value: Any) -> dict[str, JobInput]:
    """Parse a job's resolved inputs from their JSON value."""
    return _inputs.validate_python(value)
