"""Submitting pairs.generate: its inputs, the price in the log, and the data sets in the job's view."""

from __future__ import annotations

from typing import Any

from armature.contracts.artifacts import Producer
from armature.contracts.pairs import PairsMetadata
from armature.contracts.specs import parse_inputs
from armature.datasets.scan import scan_rows
from armature.db import jobs
from armature.db.models import Job
from armature.db.transitions import Lease
from armature.storage.artifacts import publish_folder
from tests.support.api import Api, error_of

ROW = {"prompt": "a", "responses": ["b", "c"], "labels": {"empathy": 1}}
METADATA = PairsMetadata(
    rows=1, held_out_rows=0, prompts=1, hard_pairs=0, labels={"empathy": 1}, independent=True, attributes={}
)


def pairs_spec(teacher: str, judge: str, prompts: str, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "pairs.generate",
        "prompts": prompts,
        "teachers": [
            {"type": "endpoint", "endpoint": "lab", "model": "large"},
            {"type": "base_model", "base_model": teacher},
        ],
        "judges": [{"type": "likelihood_ratio", "base_model": judge}],
    } | changes


def test_the_models_of_teachers_and_judges_are_inputs(api: Api) -> None:
    key = api.tenant("acme")
    teacher, judge = (api.base_model(key.tenant_id, name)[0] for name in ("large", "small"))
    foreign, _ = api.base_model(api.tenant("rival").tenant_id, "secret")
    prompts = key.dataset("prompt", [{"prompt": text} for text in "abc"])
    created = key.post("/v1/jobs", {"spec": pairs_spec(teacher, judge, prompts)})
    assert created.status_code == 202
    with api.resources.readers() as session:
        job = session.get_one(Job, created.json()["id"])
        assert set(parse_inputs(job.inputs)) == {"prompts", "teacher_1", "judge_0"}
    for spec, param in (
        (pairs_spec(foreign, judge, prompts), "spec.teachers.1.base_model"),
        (pairs_spec(teacher, foreign, prompts), "spec.judges.0.base_model"),
    ):
        refused = error_of(key.post("/v1/jobs", {"spec": spec}), 404)
        assert (refused["code"], refused["param"]) == ("not_found", param)


def test_the_price_is_in_the_log_before_the_job_starts(api: Api) -> None:
    key = api.tenant("acme")
    model, _ = api.base_model(key.tenant_id, "small")
    prompts = key.dataset("prompt", [{"prompt": text} for text in "abc"])
    spec = pairs_spec(model, model, prompts, attributes=["empathy", "helpfulness"], cross_label=True)
    job = key.post("/v1/jobs", {"spec": spec}).json()["id"]
    queued, price = key.get(f"/v1/jobs/{job}/events").json()["data"]
    assert queued["message"] == "queued"
    assert price["data"]["price"] == {
        "answers": 12,  # 3 prompts, 2 attributes, 2 sides
        "generated_tokens": 12 * 96,
        "comparisons": 12,  # each of 6 pairs by both attributes
        "scored_tokens": 12 * 2 * 2 * 96,  # two answers under two instructions
        "endpoint_requests": 6,  # one of two teachers
    }
    assert price["message"].startswith("at most 12 answers, 1,152 generated tokens")


def test_a_spec_that_means_nothing_is_refused(api: Api) -> None:
    key = api.tenant("acme")
    model, _ = api.base_model(key.tenant_id, "small")
    spec = pairs_spec(model, model, key.dataset("prompt", [{"prompt": "a"}]))
    rubric = {"description": "x", "instructions_for": ["a", "b"], "instructions_against": ["c"]}
    for changes, param in (
        ({"attributes": ["empathy", "wit"]}, "spec.attributes.1"),
        ({"judges": [], "cross_label": True}, "spec.cross_label"),
        ({"judges": [], "hard_pairs_per_prompt": 1}, "spec.hard_pairs_per_prompt"),
        ({"rubrics": {"wit": rubric}}, "spec.rubrics.wit.instructions_against"),
        ({"name": "n" * 60}, "spec.name"),
    ):
        refused = error_of(key.post("/v1/jobs", {"spec": spec | changes}), 422)
        assert refused["param"] == param
    assert error_of(key.post("/v1/jobs", {"spec": spec | {"teachers": []}}), 422)["param"] == "spec.teachers"


def test_a_finished_job_lists_the_data_sets_that_it_made(api: Api, tmp_path: Any) -> None:
    key, rival = api.tenant("acme"), api.tenant("rival")
    model, _ = api.base_model(key.tenant_id, "small")
    prompts = key.dataset("prompt", [{"prompt": "a"}])
    job = key.post("/v1/jobs", {"spec": pairs_spec(model, model, prompts)}).json()["id"]
    assert key.get(f"/v1/jobs/{job}").json()["datasets"] == []
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = folder / "pairs.jsonl"
    rows.write_text('{"prompt": "a", "responses": ["b", "c"], "labels": {"empathy": 1}, "margin": {"empathy": -0.5}}\n')
    producer = Producer(kind="pairs.generate", spec={}, version="0")
    manifest, ref = publish_folder(
        api.resources.store, key.tenant_id, folder, metadata=METADATA, parents=[], producer=producer
    )
    with rows.open("rb") as file:
        made = jobs.DatasetPublication("mine", manifest.files[0], scan_rows(file))
    with api.resources.writers.begin() as session:
        claimed = jobs.claim(session, job, "worker", 60.0)
        assert claimed is not None
        lease = Lease(job, claimed.fence)
        assert jobs.publish(session, lease, [jobs.Publication("pairs", ref, manifest)], datasets=[made])
    view = key.get(f"/v1/jobs/{job}").json()
    (listed,) = view["datasets"]
    assert (listed["name"], listed["rows"]) == ("mine", 1)
    assert view["artifacts"][0]["metadata"]["type"] == "pairs"
    dataset = key.get(f"/v1/datasets/{listed['id']}").json()
    assert (dataset["format"], dataset["usable_as"]) == ("preference", ["preference", "prompt"])
    assert dataset["statistics"]["attributes"]["empathy"]["labels"] == 1
    arm = {"kind": "arm.train", "base_model": model, "pairs": listed["id"], "attributes": ["empathy"]}
    assert key.post("/v1/jobs", {"spec": arm}).status_code == 202
    assert error_of(rival.get(f"/v1/datasets/{listed['id']}"), 404)["code"] == "not_found"
    lineage = key.get(f"/v1/artifacts/{view['artifacts'][0]['id']}/lineage").json()
    edge = {"parent": ref.digest, "child": dataset["sha256"], "role": "rows"}
    assert lineage["edges"] == [edge]
    assert {(node["kind"], node["name"]) for node in lineage["nodes"]} == {("pairs", "pairs"), ("file", "mine.jsonl")}
