"""What an output was made from, by digest."""

from __future__ import annotations

import hashlib

from armature.contracts.artifacts import Parent
from armature_worker.context.ports import RecipeContext


def parents(context: RecipeContext) -> list[Parent]:
    """Every input of the job by its role: artifacts by their digest, data sets and files by their SHA-256."""
    digests = {role: artifact.digest for role, artifact in context.artifacts.items()}
    for role, path in context.files.items():
        with path.open("rb") as file:
            digests[role] = hashlib.file_digest(file, "sha256").hexdigest()
    return [Parent(role=role, digest=digests[role]) for role in sorted(digests)]
