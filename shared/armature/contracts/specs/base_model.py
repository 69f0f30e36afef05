"""``base_model.import``: copy a base model into the store and register it under a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from armature.contracts.base import Contract, Name
from armature.contracts.specs.base import BaseSpec, Queue, Reference

ModelFileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class FolderSource(Contract):
    """A folder or one GGUF file on the worker, below a root that the operator allows.

    Needs the platform scope.
    """

    type: Literal["folder"] = "folder"
    path: Annotated[str, Field(min_length=1, max_length=4096)]


class FilesSource(Contract):
    """Files uploaded one by one through ``/v1/files``: no archives."""

    type: Literal["files"] = "files"
    files: dict[ModelFileName, str] = Field(
        min_length=1, max_length=256, description="file name in the model's folder -> file id"
    )


class HubSource(Contract):
    """A Hugging Face hub repository, if the operator allows the hub. Needs the platform scope."""

    type: Literal["hub"] = "hub"
    repo_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"


class BaseModelImportSpec(BaseSpec):
    """Checks a model (safetensors or GGUF, no remote code), stores it and registers it under ``name``."""

    queue: ClassVar[Queue] = "cpu"
    phases: ClassVar[Mapping[str, float]] = {"fetch": 40.0, "check": 10.0, "hash": 25.0, "load": 20.0}

    kind: Literal["base_model.import"] = "base_model.import"
    name: Name
    source: FolderSource | FilesSource | HubSource = Field(discriminator="type")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="dtype of weights that are dequantised; others keep theirs"
    )
    gguf_file: ModelFileName | None = Field(
        None, description="the GGUF file to import, its first part if it has several; null: the only one"
    )
    license_note: str | None = Field(None, max_length=512)

    def references(self) -> dict[str, Reference]:
        """Return the uploaded files, each in its own role."""
        if not isinstance(self.source, FilesSource):
            return {}
        return {
            f"files/{name}": Reference(resource="file", id=file_id, param=f"spec.source.files.{name}")
            for name, file_id in self.source.files.items()
        }

    def names_asked(self) -> dict[str, str]:
        """Return the model's name."""
        return {"spec.name": self.name}

    def provenance(self) -> dict[str, Any]:
        """Leave out the folder's path on the worker: every tenant can read a shared model's manifest."""
        return self.model_dump(mode="json", exclude={"source": {"path"}})
