"""What lies beside an output's weights: its metadata as JSON, and a model card in the hub's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from armature.contracts.artifacts import ArtifactMetadata
from armature.contracts.base import canonical_json

METADATA, CARD = "armature.json", "README.md"


def write_metadata(metadata: ArtifactMetadata, folder: Path) -> None:
    """The artifact's metadata, for whoever has only the folder."""
    (folder / METADATA).write_bytes(canonical_json(metadata.model_dump(mode="json")))


def write_card(folder: Path, text: str, **fields: Any) -> None:
    """A model card: the hub's fields as YAML, then the text."""
    (folder / CARD).write_text(f"---\n{ModelCardData(**fields).to_yaml()}\n---\n\n{text}\n")
