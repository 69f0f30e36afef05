"""Resolve the ids in a request to rows of the tenant, and to the keys and digests that a worker needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import cast

from sqlalchemy.orm import Session

from armature.contracts.base import ID_PREFIXES
from armature.contracts.datasets import USABLE_AS, DatasetFormat
from armature.contracts.file_scans import DatasetStatistics
from armature.contracts.files import ROW_PURPOSES, DatasetCreateRequest
from armature.contracts.specs import JobInput
from armature.contracts.specs.base import ArtifactInput, FileInput, Reference
from armature.db.models import Artifact, Dataset, File
from armature.errors import InvalidDataset, WrongKind
from armature.storage.artifacts import blob_key
from armature_api.artifacts.service import ref_of
from armature_api.base_models.service import find_base_model
from armature_api.callers import Caller
from armature_api.datasets.service import bad_rows_of, describe_dataset, statistics_of
from armature_api.files.service import scan_of
from armature_api.kit.queries import find


def resolve(session: Session, caller: Caller, references: Mapping[str, Reference]) -> dict[str, JobInput]:
    """Resolve a job's inputs by role, and flag files as harmful if their role says so.

    Raises:
        NotFound: A reference names nothing that the tenant may see.
        WrongKind: A reference names another kind of resource than the spec needs, or harmful data in a role that
            refuses it.
        PermissionDenied: A reference names harmful data, and the caller's key lacks ``harmful:write``.
    """
    marking_first = sorted(references.items(), key=lambda item: item[1].harmful != "marked")
    found = {role: _RESOLVERS[reference.resource](session, caller, reference) for role, reference in marking_first}
    return {role: found[role] for role in references}


def repeated_data(references: Mapping[str, Reference], inputs: Mapping[str, JobInput]) -> list[str]:
    """List warnings about roles that got the same file, such as validation data that is trained on."""
    roles: defaultdict[str, list[str]] = defaultdict(list)
    for role, reference in references.items():
        value = inputs[role]
        if reference.resource == "dataset" and isinstance(value, FileInput):
            roles[value.sha256].append(role)
    return [f"{' and '.join(same)} are the same data" for same in roles.values() if len(same) > 1]


def rows_of(session: Session, references: Mapping[str, Reference]) -> dict[str, int]:
    """Count the rows of each data set among resolved references, by role."""
    counts = {}
    for role, reference in references.items():
        if reference.resource != "dataset":
            continue
        dataset = session.get(Dataset, reference.id)
        file = session.get(File, reference.id) if dataset is None else None
        scan = scan_of(file) if file is not None else None
        counts[role] = dataset.rows if dataset is not None else scan.statistics.rows if scan is not None else 0
    return counts


def find_artifact(session: Session, tenant_id: str, id: str, kind: str | None, *, param: str) -> Artifact:
    """Find an artifact of ``kind`` (None: any).

    Raises:
        NotFound: The tenant may see no such artifact.
        WrongKind: It is of another kind.
    """
    artifact = find(session, Artifact, tenant_id, id, param=param)
    _check_kind(artifact.kind, kind, param)
    return artifact


def find_checkpoint(session: Session, tenant_id: str, base_model_id: str, *, param: str) -> Artifact:
    """Find the checkpoint of a base model, given by id, alias or name.

    Raises:
        NotFound: The tenant may see no such base model.
    """
    base_model = find_base_model(session, tenant_id, base_model_id, param=param)
    return find(session, Artifact, tenant_id, base_model.artifact_id, param=param)


def find_rows_file(session: Session, tenant_id: str, id: str, *, param: str) -> File:
    """Find a file that was uploaded as a file of rows.

    Raises:
        NotFound: The tenant has no such file.
        WrongKind: It was uploaded for another purpose.
    """
    file = find(session, File, tenant_id, id, param=param)
    if file.purpose not in ROW_PURPOSES:
        raise WrongKind(f"must name a file of rows; this one was uploaded as a {file.purpose}", param=param)
    return file


def find_rows(session: Session, tenant_id: str, reference: Reference) -> tuple[Dataset, File]:
    """Find a data set and its file; a file's id stands for the data set that it would make.

    OpenAI's clients name files in ``training_file``.

    Raises:
        NotFound: The tenant may see no such data set or file.
        WrongKind: The rows can not serve as the role needs, or are harmful where the role refuses that.
        InvalidDataset: A row of the file is bad.
    """
    if reference.id.startswith(f"{ID_PREFIXES['file']}_"):
        file = find_rows_file(session, tenant_id, reference.id, param=reference.param)
        try:
            dataset = describe_dataset(file, DatasetCreateRequest(name="file", file_id=file.id))
        except InvalidDataset as error:
            raise InvalidDataset(error.message, param=reference.param) from None
    else:
        dataset = find(session, Dataset, tenant_id, reference.id, param=reference.param)
        file = find(session, File, tenant_id, dataset.file_id, param=reference.param)
    uses = USABLE_AS[cast("DatasetFormat", dataset.format)]
    if reference.dataset_use not in (None, *uses):
        raise WrongKind(
            f"must name {reference.dataset_use} rows; this data set's serve as {' or '.join(uses)}",
            param=reference.param,
        )
    _refuse_harm(reference, file)
    return dataset, file


def artifact_input(artifact: Artifact) -> ArtifactInput:
    """Build the job input that names the artifact."""
    return ArtifactInput(id=artifact.id, ref=ref_of(artifact))


def _base_model(session: Session, caller: Caller, reference: Reference) -> ArtifactInput:
    return artifact_input(find_checkpoint(session, caller.tenant_id, reference.id, param=reference.param))


def _artifact(session: Session, caller: Caller, reference: Reference) -> ArtifactInput:
    kind, param = reference.artifact_kind, reference.param
    return artifact_input(find_artifact(session, caller.tenant_id, reference.id, kind, param=param))


def _dataset(session: Session, caller: Caller, reference: Reference) -> FileInput:
    dataset, file = find_rows(session, caller.tenant_id, reference)
    _check_attributes(statistics_of(dataset, file), reference)
    _handle_harmful(caller, reference, file)
    rows = {"attribute": dataset.attribute, "on_bad_rows": bad_rows_of(file)}
    return _file_input(reference.id, file).model_copy(update=rows)


def _check_attributes(statistics: DatasetStatistics | None, reference: Reference) -> None:
    """Refuse an attribute that the data set has no labels for."""
    if statistics is None:
        return
    known = {name for name, attribute in statistics.attributes.items() if attribute.labels}
    for param, name in reference.attributes.items():
        if name not in known:
            found = ", ".join(sorted(known)) or "none"
            raise InvalidDataset(f"{reference.param} has no labels for {name}; it has {found}", param=param)


def _refuse_harm(reference: Reference, file: File) -> None:
    """Refuse harmful data in a role that does not take it."""
    if file.harmful and reference.harmful == "refused":
        raise WrongKind("must not name data that is marked harmful", param=reference.param)


def _handle_harmful(caller: Caller, reference: Reference, file: File) -> None:
    """Flag a file as harmful if its role says so; flagged files need the scope ``harmful:write``."""
    if reference.harmful == "marked":
        file.harmful = True
    if file.harmful:
        caller.require("harmful:write", param=reference.param)


def _file(session: Session, caller: Caller, reference: Reference) -> FileInput:
    file = find(session, File, caller.tenant_id, reference.id, param=reference.param)
    _check_kind(file.purpose, "model", reference.param)
    _refuse_harm(reference, file)
    _handle_harmful(caller, reference, file)
    return _file_input(reference.id, file)


_RESOLVERS: dict[str, Callable[[Session, Caller, Reference], JobInput]] = {
    "base_model": _base_model,
    "artifact": _artifact,
    "dataset": _dataset,
    "file": _file,
}


def _check_kind(actual: str, wanted: str | None, param: str) -> None:
    if wanted is not None and actual != wanted:
        raise WrongKind(f"must name a {wanted}; this id is a {actual}", param=param)


def _file_input(id: str, file: File) -> FileInput:
    key = blob_key(file.tenant_id, file.sha256)
    return FileInput(id=id, key=key, sha256=file.sha256, size=file.bytes, filename=file.filename)
