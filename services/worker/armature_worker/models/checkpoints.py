"""The base models among a job's inputs, by role."""

from __future__ import annotations

from armature.contracts.artifacts import CheckpointMetadata
from armature_worker.context.ports import LocalArtifact


def checkpoint_metadata(artifact: LocalArtifact) -> CheckpointMetadata:
    """Read the metadata of a base model's artifact."""
    metadata = artifact.manifest.metadata
    assert isinstance(metadata, CheckpointMetadata)
    return metadata
