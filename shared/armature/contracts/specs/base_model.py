"""``base_model.import``: bring a base model into the store and give it a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from armature.contracts.base import Contract, Name
from armature.contracts.specs.base import BaseSpec, Queue, Reference

ModelFileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class FolderSource(Contract):
    """A folder the worker can read, below a root that its operator allows. Needs the platform scope."""

    type: Literal["folder"] = "folder"
    path: Annotated[str, Field(min_length=1, max_length=4096)]


class FilesSource(Contract):
    """Files uploaded one by one through ``/v1/files``: no archives."""

    type: Literal["files"] = "files"
    files: dict[ModelFileName, str] = Field(
        min_length=1, max_length=256, description="file name in the model's folder -> file id"
    )


class HubSource(Contract):
    """A Hugging Face hub repository, where the worker's network and operator allow it. Needs the platform scope."""

    type: Literal["hub"] = "hub"
    repo_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")] = "main"


class BaseModelImportSpec(BaseSpec):
    """Check a model (safetensors only, no remote code), hash it, store it, register it under ``name``."""

    queue: ClassVar[Queue] = "cpu"
    phases: ClassVar[Mapping[str, float]] = {"fetch": 40.0, "check": 10.0, "hash": 25.0, "load": 20.0}

    kind: Literal["base_model.import"] = "base_model.import"
    name: Name
    source: FolderSource | FilesSource | HubSource = Field(discriminator="type")
    license_note: str | None = Field(None, max_length=512)

    def references(self) -> dict[str, Reference]:
        """The uploaded files, each in a role of its own."""
        if not isinstance(self.source, FilesSource):
            return {}
        return {
            f"files/{name}": Reference(resource="file", id=file_id, param=f"spec.source.files.{name}")
            for name, file_id in self.source.files.items()
        }

    def names_asked(self) -> dict[str, str]:
        """The model's name."""
        return {"spec.name": self.name}

    def provenance(self) -> dict[str, Any]:
        """Without the folder's path on the worker: a shared model's manifest can be read by every tenant."""
        return self.model_dump(mode="json", exclude={"source": {"path"}})
