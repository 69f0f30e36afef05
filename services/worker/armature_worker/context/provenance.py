"""Provenance of an output: its parents by digest, metadata as JSON, and a model card for the hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from armature.contracts.artifacts import ArtifactMetadata, Parent
from armature.contracts.base import canonical_json
from armature_worker.context.ports import RecipeContext

METADATA, CARD = "armature.json", "README.md"


def parents(context: RecipeContext) -> list[Parent]:
    """List the job's inputs by role: artifacts by their digest, data sets and files by their SHA-256."""
    digests = {role: artifact.digest for role, artifact in context.artifacts.items()}
    for role, path in context.files.items():
        with path.open("rb") as file:
            digests[role] = hashlib.file_digest(file, "sha256").hexdigest()
    return [Parent(role=role, digest=digests[role]) for role in sorted(digests)]


def write_metadata(metadata: ArtifactMetadata, folder: Path) -> None:
    """Write the artifact's metadata into ``folder``, which may travel without its manifest."""
    (folder / METADATA).write_bytes(canonical_json(metadata.model_dump(mode="json")))


def write_model_card(folder: Path, text: str, **fields: Any) -> None:
    """Write a model card into ``folder``: the hub's ``fields`` as YAML, then ``text``."""
    (folder / CARD).write_text(f"---\n{ModelCardData(**fields).to_yaml()}\n---\n\n{text}\n")
