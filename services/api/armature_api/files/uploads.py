"""Receive an upload: authenticate, spool the bytes to disk, put them into the store.

A slow upload holds no database session, no session slot and none of the threads that serve requests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import Depends, Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from armature.contracts.base import Contract
from armature.contracts.files import DatasetCheck, FileUpload
from armature.errors import DuplicateKey, InvalidRequest, MalformedBody, MissingField, UnsupportedMediaType
from armature.http.errors import validation_error
from armature.http.json import content_type
from armature_api.callers import Caller
from armature_api.deps import CallerDep, Resources, ResourcesDep, unit_of_work
from armature_api.files import service
from armature_api.quotas import check_storage_quota

Fields = TypeVar("Fields", bound=Contract)

_FORM = "multipart/form-data"
_MAX_TEXT_BYTES = 1024


def _form_body(fields: type[Contract]) -> dict[str, Any]:
    """Describe a form for the OpenAPI document.

    A form parameter would make FastAPI read the body before authentication.
    """
    schema = fields.model_json_schema()
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    schema["properties"] = {**schema.get("properties", {}), "file": file}
    schema["required"] = ["file", *schema.get("required", [])]
    return {"requestBody": {"required": True, "content": {_FORM: {"schema": schema}}}}


class CheckUpload(Contract):
    """A file of rows to check; it has no fields beside its bytes."""


UPLOAD_BODY, CHECK_BODY = _form_body(FileUpload), _form_body(CheckUpload)
"""The two forms in the OpenAPI document."""


@dataclass(frozen=True)
class Uploaded:
    """An upload whose bytes are in the store and that no row refers to yet."""

    fields: FileUpload
    filename: str
    received: service.Received


@asynccontextmanager
async def _form_of(request: Request) -> AsyncIterator[FormData]:
    if content_type(request) != _FORM:
        raise UnsupportedMediaType(f"send {_FORM}")
    max_fields = len(FileUpload.model_fields)
    try:
        async with request.form(max_files=1, max_fields=max_fields, max_part_size=_MAX_TEXT_BYTES) as form:
            yield form
    except ClientDisconnect:
        raise MalformedBody("the upload ended too early") from None


async def _receive(request: Request, caller: CallerDep, resources: ResourcesDep) -> Uploaded:
    async with _form_of(request) as form:
        fields, file = _fields(form, FileUpload), _file(form)
        if fields.harmful:
            caller.require("harmful:write", param="harmful")
        store = partial(_store, resources, caller, fields, file)
        return await to_thread.run_sync(store, limiter=resources.uploads)


async def _check(request: Request, caller: CallerDep, resources: ResourcesDep) -> DatasetCheck:
    async with _form_of(request) as form:
        _fields(form, CheckUpload)
        check = partial(service.check_rows, _file(form).file, resources.settings.api.max_rows_file)
        return await to_thread.run_sync(check, limiter=resources.uploads)


UploadedDep = Annotated[Uploaded, Depends(_receive)]
CheckedDep = Annotated[DatasetCheck, Depends(_check)]
"""What a file would be as a data set; the caller is authenticated before its bytes are read."""


def _fields(form: FormData, contract: type[Fields]) -> Fields:
    named = form.multi_items()
    if len(named) > len(form):
        raise DuplicateKey("the form has a field twice")
    texts = {name: value for name, value in named if name != "file"}
    try:
        return contract.model_validate_strings(texts)
    except ValidationError as error:
        raise validation_error([{**one, "loc": ("form", *one["loc"])} for one in error.errors()]) from None


def _file(form: FormData) -> UploadFile:
    file = form.get("file")
    if file is None:
        raise MissingField("this field is required", param="file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("has to be a file", param="file")
    return file


def _store(resources: Resources, caller: Caller, fields: FileUpload, file: UploadFile) -> Uploaded:
    filename = service.displayed_filename(file.filename)
    with unit_of_work(resources.readers, caller.tenant_id) as session:
        check_storage_quota(session, caller, file.size or 0)
    received = service.receive(
        resources.store, caller.tenant_id, fields, file.file, resources.settings.api.max_rows_file
    )
    return Uploaded(fields, filename, received)
