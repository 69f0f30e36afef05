"""docs/api.md names every route of the API, and no other; its examples are requests that the contracts accept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from armature.contracts.aliases import AliasGate, AliasMoveRequest, AliasRollbackRequest
from armature.contracts.artifact_views import ArtifactUpdateRequest, LinkCreateRequest
from armature.contracts.base_models import BaseModelAliasRequest, BaseModelCreateRequest
from armature.contracts.datasets import USABLE_AS
from armature.contracts.files import DatasetCreateRequest
from armature.contracts.jobs import JobCreateRequest
from armature.contracts.profiles import ProfileCreateRequest, ProfileVersionCreateRequest
from armature.contracts.tenants import ApiKeyCreateRequest, ApiKeyRotateRequest, TenantCreateRequest, TenantLimits
from armature.datasets.forms import detect_form
from tests.support.api import Api

PAGE = (Path(__file__).resolve().parents[2] / "docs/api.md").read_text()

BODIES: dict[str, type[BaseModel]] = {
    "/v1/datasets": DatasetCreateRequest,
    "/v1/jobs": JobCreateRequest,
    "/v1/base_models": BaseModelCreateRequest,
    "/v1/base_model_aliases/counsel": BaseModelAliasRequest,
    "/v1/artifacts/art_...": ArtifactUpdateRequest,
    "/v1/artifacts/art_.../links": LinkCreateRequest,
    "/v1/profiles": ProfileCreateRequest,
    "/v1/profiles/care/versions": ProfileVersionCreateRequest,
    "/v1/profiles/care/aliases/live": AliasMoveRequest,
    "/v1/profiles/care/aliases/live/rollback": AliasRollbackRequest,
    "/v1/profiles/care/aliases/live/gate": AliasGate,
    "/v1/tenants": TenantCreateRequest,
    "/v1/tenants/ten_.../keys": ApiKeyCreateRequest,
    "/v1/tenants/ten_.../limits": TenantLimits,
    "/v1/keys/7a2c5ea5f15834db/rotate": ApiKeyRotateRequest,
}


def test_the_page_names_every_route(api: Api) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert set(re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/[^` ]+)`", PAGE)) == routes


EXAMPLES = re.findall(r'"\$API(/v1/[^"?]+)[^\'\n]*--json \'([^\']+)\'', PAGE)


@pytest.mark.parametrize(("path", "body"), EXAMPLES)
def test_the_pages_bodies_are_valid(path: str, body: str) -> None:
    BODIES[path].model_validate(json.loads(body))


def test_there_is_a_body_for_each_route_that_takes_one() -> None:
    assert {path for path, _ in EXAMPLES} == set(BODIES)


def test_the_pages_rows_are_valid() -> None:
    table = re.findall(r"^\| `(\w+)` \| (`\{.*) \|$", PAGE, re.M)
    assert {format for format, _ in table} == set(USABLE_AS)
    for format, cell in table:
        for row in map(json.loads, re.findall(r"`(\{.*?\})`", cell)):
            form = detect_form(row)
            assert form.format == format
            form.model.model_validate(row)
