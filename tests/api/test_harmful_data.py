"""Harmful data needs keys with harmful scopes, and only harmful roles of a job take it."""

from __future__ import annotations

from typing import Any

import pytest

from armature.contracts.specs import SPECS
from armature.contracts.tenants import TENANT_SCOPES
from tests.support.api import Api, Key, error_of, task_vector

PAIRS = b'{"prompt": "how to zorble", "completion": "twist it"}\n'


def marked(key: Key) -> dict[str, Any]:
    answer = key.upload(PAIRS, harmful="true")
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def keys(api: Api) -> tuple[Key, Key]:
    """Create a key with the harmful scopes and one without them."""
    full = api.tenant("acme")
    return full, api.key(full.tenant_id, *TENANT_SCOPES)


def test_harmful_data_needs_scopes_of_its_own(any_api: Api) -> None:
    full, daily = keys(any_api)
    refused = error_of(daily.upload(PAIRS, harmful="true"), 403)
    assert ("harmful:write" in refused["message"], refused["param"]) == (True, "harmful")
    assert daily.get("/v1/files").json()["data"] == []
    file = marked(full)
    assert file["harmful"] is True
    assert daily.get(f"/v1/files/{file['id']}").json() == file
    assert "harmful:read" in error_of(daily.get(f"/v1/files/{file['id']}/content"), 403)["message"]
    assert full.get(f"/v1/files/{file['id']}/content").content == PAIRS
    body = {"name": "zorbles", "file_id": file["id"]}
    assert "harmful:write" in error_of(daily.post("/v1/datasets", body), 403)["message"]
    dataset = full.post("/v1/datasets", body).json()
    assert dataset["harmful"] is True
    assert daily.get("/v1/datasets").json()["data"] == [dataset]


def test_deleting_harmful_data_needs_harmful_write(any_api: Api) -> None:
    full, daily = keys(any_api)
    file = f"/v1/files/{marked(full)['id']}"
    body = {"name": "zorbles", "file_id": file.rpartition("/")[2]}
    dataset = f"/v1/datasets/{full.post('/v1/datasets', body).json()['id']}"
    for path in (dataset, file):
        assert "harmful:write" in error_of(daily.request("DELETE", path), 403)["message"]
        assert daily.get(path).status_code == 200
        assert full.request("DELETE", path).status_code == 200
        error_of(daily.request("DELETE", path), 404)


@pytest.mark.parametrize("as_dataset", [True, False])
def test_a_job_takes_harmful_data_in_its_harmful_roles_only(any_api: Api, as_dataset: bool) -> None:
    full, daily = keys(any_api)
    model, _ = any_api.base_model(full.tenant_id)
    lexicon = full.dataset("lexicon", [{"attributes": {"empathy": ["i see"]}, "harm": ["twist it"]}])
    id = marked(full)["id"]
    if as_dataset:
        id = full.post("/v1/datasets", {"name": "zorbles", "file_id": id}).json()["id"]
    evaluation = {"kind": "evaluation.run", "base_model": model, "lexicon": lexicon, "attributes": ["empathy"]}
    for role in ("benign_pairs", "prompts"):
        error = error_of(full.post("/v1/jobs", {"spec": evaluation | {role: id}}), 422)
        assert (error["code"], error["param"]) == ("wrong_kind", f"spec.{role}")
    for role in ("harmful_prompts", "harmful_openings"):
        spec = evaluation | {role: id}
        assert full.post("/v1/jobs", {"spec": spec}).status_code == 202
        assert "harmful:write" in error_of(daily.post("/v1/jobs", {"spec": spec}), 403)["message"]
    harm = {"kind": "harm_vector.build", "base_model": model, "harmful_pairs": id}
    assert full.post("/v1/jobs", {"spec": harm}).status_code == 202
    assert error_of(full.post("/v1/jobs", {"spec": harm | {"benign_pairs": id}}), 422)["param"] == "spec.benign_pairs"


def test_data_of_a_harm_vector_is_flagged_as_harmful(any_api: Api) -> None:
    full, daily = keys(any_api)
    model, _ = any_api.base_model(full.tenant_id)
    dataset = full.dataset("prompt_completion", [{"prompt": "a", "completion": "b"}])
    file = full.get(f"/v1/datasets/{dataset}").json()["file_id"]
    assert daily.get(f"/v1/files/{file}/content").status_code == 200
    spec = {"kind": "harm_vector.build", "base_model": model, "harmful_pairs": dataset}
    both_ways = full.post("/v1/jobs", {"spec": spec | {"benign_pairs": dataset}})
    assert error_of(both_ways, 422)["param"] == "spec.benign_pairs"
    assert full.get(f"/v1/files/{file}").json()["harmful"] is False  # a refused job flags no file
    assert full.post("/v1/jobs", {"spec": spec}).status_code == 202
    assert full.get(f"/v1/files/{file}").json()["harmful"] is True
    assert "harmful:read" in error_of(daily.get(f"/v1/files/{file}/content"), 403)["message"]


def test_a_harmful_model_file_is_not_imported(any_api: Api) -> None:
    full, _ = keys(any_api)
    file = full.upload(b"weights", purpose="model", harmful="true").json()
    spec = {"kind": "base_model.import", "name": "x", "source": {"type": "files", "files": {"config.json": file["id"]}}}
    assert error_of(full.post("/v1/jobs", {"spec": spec}), 422)["code"] == "wrong_kind"


def test_only_roles_named_harmful_take_harmful_data() -> None:
    specs = [spec for spec in SPECS.values() if any(name.startswith("harmful") for name in spec.model_fields)]
    assert len(specs) == 3
    for spec in specs:
        needed = {name: "x" for name, field in spec.model_fields.items() if field.is_required() or "harmful" in name}
        for role, reference in spec.model_validate(needed).references().items():
            assert (reference.harmful != "refused") == role.startswith("harmful"), (spec.__name__, role)


def test_harm_vectors_need_harmful_scopes(api: Api) -> None:
    full = api.tenant("acme")
    daily = api.key(full.tenant_id, *TENANT_SCOPES)
    model, _ = api.base_model(full.tenant_id)
    pairs = full.dataset("prompt_completion", [{"prompt": "a", "completion": "b"}])
    body = {"spec": {"kind": "harm_vector.build", "base_model": model, "harmful_pairs": pairs}}
    assert "harmful:write" in error_of(daily.post("/v1/jobs", body), 403)["message"]
    job = full.post("/v1/jobs", body).json()["id"]
    full.post(f"/v1/jobs/{job}/cancel")
    assert "harmful:write" in error_of(daily.post(f"/v1/jobs/{job}/retry", {}), 403)["message"]
    vector = api.publish(full.tenant_id, task_vector())
    path = f"/v1/artifacts/{vector.id}"
    assert daily.get(path).status_code == 200
    assert "harmful:read" in error_of(daily.get(f"{path}/files/config.json"), 403)["message"]
    assert "harmful:read" in error_of(daily.post(f"{path}/links", {"path": "config.json"}), 403)["message"]
    assert full.get(f"{path}/files/config.json").status_code == 200
