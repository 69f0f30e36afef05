"""Artifacts: verification, links, lineage, retention and deletion."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select, update

from armature.contracts.artifacts import Parent, ReportMetadata
from armature.db.models import Artifact
from armature.settings import DatabaseSettings, StoreSettings
from armature.storage.artifacts import blob_key
from armature.storage.minio import MinioArtifactStore
from armature_api.relay.relay import Relay
from tests.support.api import NO_BROKER, Api, Parts, adapter, error_of, run_api, task_vector
from tests.support.servers import S3Server


def report(**metrics: Any) -> ReportMetadata:
    return ReportMetadata(subject={}, metrics=metrics)


def test_verify_names_the_file_that_rotted(api: Api) -> None:
    key = api.tenant("acme")
    artifact = api.publish(key.tenant_id, report(mip=1))
    path = f"/v1/artifacts/{artifact.id}/verify"
    assert key.post(path).json()["ok"] is True
    damaged, lost = artifact.manifest["files"]
    store = api.resources.store
    store.put_bytes(blob_key(key.tenant_id, damaged["sha256"]), b"rotten")
    store.delete(blob_key(key.tenant_id, lost["sha256"]))
    found = key.post(path).json()
    assert (found["ok"], [file["ok"] for file in found["files"]]) == (False, [False, False])
    assert "does not hash" in found["files"][0]["problem"]
    assert "missing" in found["files"][1]["problem"]
    error_of(api.tenant("bolt").post(path), 404)


def test_a_folder_gives_no_links(api: Api) -> None:
    key = api.tenant("acme")
    artifact = api.publish(key.tenant_id, report(mip=1))
    links = f"/v1/artifacts/{artifact.id}/links"
    assert error_of(key.post(links, {"path": "config.json"}), 409)["code"] == "no_links"
    error_of(key.post(links, {"path": "../config.json"}), 404)
    for seconds in (0, 3601, "60"):
        error_of(key.post(links, {"path": "config.json", "seconds": seconds}), 422)


def test_a_link_of_an_s3_store_needs_no_key(
    sqlite_settings: DatabaseSettings, tmp_path: Path, s3_server: S3Server
) -> None:
    with run_api(sqlite_settings, tmp_path, NO_BROKER, s3_server.settings()) as api:
        key = api.tenant("acme")
        artifact = api.publish(key.tenant_id, report(mip=1))
        links = f"/v1/artifacts/{artifact.id}/links"
        answer = key.post(links, {"path": "config.json", "seconds": 60})
        assert answer.status_code == 201, answer.text
        assert abs(answer.json()["expires_at"] - time.time() - 60) < 30
        downloaded = httpx.get(answer.json()["url"])
        assert downloaded.content == key.get(f"/v1/artifacts/{artifact.id}/files/config.json").content
        assert downloaded.headers["content-disposition"] == 'attachment; filename="config.json"'
        error_of(api.tenant("bolt").post(links, {"path": "config.json"}), 404)


def test_links_carry_the_address_that_clients_know() -> None:
    settings = StoreSettings(
        kind="s3", endpoint="minio:9000", public_endpoint="files.example.org", access_key="a", secret_key="b"
    )
    assert MinioArtifactStore(settings).link("k", 60, "f").startswith("https://files.example.org/armature/k?")


def test_lineage_goes_up_and_down_by_digest(any_api: Api) -> None:
    key = any_api.tenant("acme")
    file = key.upload(b'{"prompt": "p", "completion": "c"}\n').json()
    base = any_api.base_model(key.tenant_id)[1]

    def made(metadata: Any, **parents: str) -> Artifact:
        listed = [Parent(role=role, digest=digest) for role, digest in parents.items()]
        return any_api.publish(key.tenant_id, metadata, parents=listed)

    vector = made(task_vector(), base_model=base.digest, harmful_pairs=file["sha256"])
    arm = made(adapter(), base_model=base.digest, harm_vector=vector.digest, pairs="f" * 64)
    made(report(mip=1))  # unrelated
    graph = key.get(f"/v1/artifacts/{vector.id}/lineage").json()
    kinds = {node["digest"]: (node["kind"], node["id"]) for node in graph["nodes"]}
    assert kinds == {
        vector.digest: ("task_vector", vector.id),
        base.digest: ("checkpoint", base.id),
        file["sha256"]: ("file", file["id"]),
        arm.digest: ("adapter", arm.id),
    }
    assert {(edge["parent"], edge["child"], edge["role"]) for edge in graph["edges"]} == {
        (base.digest, vector.digest, "base_model"),
        (file["sha256"], vector.digest, "harmful_pairs"),
        (vector.digest, arm.digest, "harm_vector"),
    }
    whole = key.get(f"/v1/artifacts/{arm.id}/lineage").json()
    assert {node["kind"] for node in whole["nodes"]} == {"adapter", "task_vector", "checkpoint", "file", "unknown"}
    assert not whole["truncated"]


def test_lineage_shows_nothing_of_other_tenants(api: Api) -> None:
    mine, theirs = api.tenant("acme"), api.tenant("bolt")
    base = api.base_model(api.platform.tenant_id, "shared-base", shared=True)[1]
    parent = [Parent(role="base_model", digest=base.digest)]
    hidden = api.publish(theirs.tenant_id, task_vector(), parents=parent)
    graph = mine.get(f"/v1/artifacts/{base.id}/lineage").json()
    assert [node["digest"] for node in graph["nodes"]] == [base.digest]
    assert theirs.get(f"/v1/artifacts/{base.id}/lineage").json()["edges"][0]["child"] == hidden.digest


def test_a_deleted_artifact_is_gone_before_its_bytes(any_api: Api) -> None:
    key = any_api.tenant("acme")
    artifact = any_api.publish(key.tenant_id, report(mip=1))
    path = f"/v1/artifacts/{artifact.id}"
    assert key.request("DELETE", path).status_code == 204
    error_of(key.get(path), 404)
    error_of(key.request("DELETE", path), 404)
    assert artifact.id not in [item["id"] for item in key.get("/v1/artifacts").json()["data"]]
    relay = Relay(any_api.resources)
    relay.sweep()
    assert rows(any_api, artifact.id) == 1  # an open request may still read it
    _age(any_api, artifact.id)
    relay.sweep()
    assert rows(any_api, artifact.id) == 0


def rows(api: Api, id: str) -> int:
    with api.resources.readers() as session:
        return len(session.scalars(select(Artifact.id).where(Artifact.id == id)).all())


def _age(api: Api, id: str) -> None:
    with api.resources.writers.begin() as session:
        session.execute(update(Artifact).where(Artifact.id == id).values(expires_at=time.time() - 7200))


def test_an_artifact_is_kept_until_its_expiry(any_api: Api) -> None:
    key = any_api.tenant("acme")
    path = f"/v1/artifacts/{any_api.publish(key.tenant_id, report(mip=1)).id}"
    later = int(time.time()) + 1000
    assert key.request("PATCH", path, json={"expires_at": later}).json()["expires_at"] == later
    assert key.request("PATCH", path, json={"expires_at": None}).json()["expires_at"] is None
    error_of(key.request("PATCH", path, json={"expires_at": 1}), 422)
    error_of(key.request("PATCH", path, json={}), 422)
    assert key.request("PATCH", path, json={"expires_at": later}).status_code == 200
    assert key.get(path).status_code == 200
    _age(any_api, path.rpartition("/")[2])
    error_of(key.get(path), 404)


def test_an_artifact_in_use_is_not_deleted(any_api: Api) -> None:
    key = any_api.tenant("acme")
    parts = Parts(any_api, key)
    assert key.post("/v1/profiles/care/versions", parts.body()).status_code == 201
    free = any_api.publish(
        key.tenant_id, adapter(harm_vector=parts.vector.digest, harm_scale=1.5, attributes=["empathy"])
    )
    for artifact, user in ((parts.base, "base model"), (parts.vector, "profile"), (parts.arm, "profile")):
        error = error_of(key.request("DELETE", f"/v1/artifacts/{artifact.id}"), 409)
        assert error["code"] == "in_use"
        assert user in error["message"]
        error_of(key.request("PATCH", f"/v1/artifacts/{artifact.id}", json={"expires_at": 2**33}), 409)
    lexicon = key.dataset("lexicon", [{"attributes": {"empathy": ["kind"]}, "harmful": [], "refusals": []}])
    prompts = key.dataset("prompt", [{"prompt": "hello"}])
    spec = {"kind": "evaluation.run", "base_model": parts.model, "lexicon": lexicon, "prompts": prompts}
    spec |= {"harm_vector": parts.vector.id, "harm_scale": 1.5, "arm": free.id, "attributes": ["empathy"]}
    job = key.post("/v1/jobs", {"spec": spec})
    assert job.status_code == 202, job.text
    error = error_of(key.request("DELETE", f"/v1/artifacts/{free.id}"), 409)
    assert job.json()["id"] in error["message"]
    key.post(f"/v1/jobs/{job.json()['id']}/cancel")
    assert key.request("DELETE", f"/v1/artifacts/{free.id}").status_code == 204


def test_the_sweep_keeps_an_expired_artifact_in_use(any_api: Api) -> None:
    """A version created while its artifact is deleted keeps the artifact's bytes."""
    key = any_api.tenant("acme")
    parts = Parts(any_api, key)
    key.post("/v1/profiles/care/versions", parts.body())
    for artifact in (parts.arm, parts.vector, parts.base):
        _age(any_api, artifact.id)
    Relay(any_api.resources).sweep()
    assert [rows(any_api, artifact.id) for artifact in (parts.arm, parts.vector, parts.base)] == [1, 1, 1]


def test_only_the_owner_deletes_a_shared_artifact(api: Api) -> None:
    mine, theirs = api.tenant("acme"), api.platform
    artifact = api.publish(theirs.tenant_id, report(mip=1), shared=True)
    assert error_of(mine.request("DELETE", f"/v1/artifacts/{artifact.id}"), 403)["code"] == "not_yours"
    error_of(mine.request("PATCH", f"/v1/artifacts/{artifact.id}", json={"expires_at": None}), 403)
    model, base = api.base_model(theirs.tenant_id, "three", shared=True)
    mine.post("/v1/profiles", {"name": "care"})
    assert mine.post("/v1/profiles/care/versions", {"base_model": model}).status_code == 201
    assert theirs.request("DELETE", f"/v1/base_models/{model}").status_code == 409
    assert "care" not in error_of(theirs.request("DELETE", f"/v1/artifacts/{base.id}"), 409)["message"]


def test_artifacts_are_filtered_by_kind_and_job(api: Api) -> None:
    key = api.tenant("acme")
    vector, arm = api.publish(key.tenant_id, task_vector()), api.publish(key.tenant_id, adapter())
    for query, ids in (("kind=adapter", [arm.id]), (f"job={vector.job_id}", [vector.id]), ("kind=report", [])):
        assert [item["id"] for item in key.get(f"/v1/artifacts?{query}").json()["data"]] == ids
    error_of(key.get("/v1/artifacts?kind=secret"), 422)
    error_of(api.tenant("bolt").get(f"/v1/artifacts?job={vector.job_id}"), 404)
