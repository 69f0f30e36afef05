"""Bad data is refused on upload or on submission, with its line or field, before a GPU is used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select

from armature.datasets.scan import MAX_PROBLEMS, SHOWN_PROBLEMS
from armature.db.models import Job
from armature.storage.artifacts import blob_key
from tests.support.api import Api, Key, error_of

GOOD = b'{"prompt": "a", "completion": "b"}'
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def found(key: Key, content: bytes) -> list[tuple[int | None, str, str | None]]:
    """Upload bad rows, check that no data set can be made of them, and return the reported errors."""
    file = key.upload(content).json()
    problems = [(error["line"], error["code"], error["field"]) for error in file["validation"]["errors"]]
    assert file["status"] == ("error" if problems else "processed")
    answer = key.post("/v1/datasets", {"name": "rows", "file_id": file["id"]})
    if problems:
        error = error_of(answer, 422)
        line, _, field = problems[0]
        parts = ["file_id"] if line is None else [f"line.{line}", *([field] if field else [])]
        assert (error["code"], error["param"]) == ("invalid_dataset", ".".join(parts))
    else:
        assert answer.status_code == 201, answer.text
    return problems


def warnings(key: Key, content: bytes) -> dict[str, int]:
    return {warning["code"]: warning["count"] for warning in key.upload(content).json()["validation"]["warnings"]}


SHAPES: list[tuple[bytes, list[tuple[int | None, str, str | None]]]] = [
    (b"", [(None, "no_rows", None)]),
    (b"\n \n\r\n", [(None, "no_rows", None)]),
    (GOOD, []),
    (b"prompt,completion\n", [(None, "no_rows", None)]),
    (b"name,age\nAda,36\n", [(1, "unknown_columns", None)]),
    (GOOD + b"\n\n\n" + GOOD + b"\n\n", [(2, "blank_line", None)]),
    (GOOD + b"\r\n" + GOOD + b"\r\n", []),
    (b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD, []),
    (GOOD + b"\n" + GOOD + b",\n" + GOOD, [(2, "malformed_json", None)]),
    (b"[\n" + GOOD + b"\n]\n", []),
    (b"[\n" + GOOD + b",\n]\n", [(2, "malformed_json", None)]),
    (b"[\n" + GOOD + b"\n", [(1, "malformed_json", None)]),
]


@pytest.mark.bad_input(41)
@pytest.mark.parametrize(("content", "expected"), SHAPES, ids=range(len(SHAPES)))
def test_odd_files_are_accepted_or_refused_by_line(
    api: Api, content: bytes, expected: list[tuple[int, str, None]]
) -> None:
    assert found(api.platform, content) == expected


@pytest.mark.bad_input(42)
def test_a_bad_line_far_down_is_named_before_any_job(api: Api) -> None:
    content = (GOOD + b"\n") * 70_000 + b'{"prompt": "a", "completion": "b"\n' + GOOD + b"\n"
    assert found(api.platform, content) == [(70_001, "malformed_json", None)]
    file_id = api.platform.get("/v1/files").json()["data"][0]["id"]
    model, _ = api.base_model(api.platform.tenant_id)
    spec = {"kind": "harm_vector.build", "base_model": model, "harmful_pairs": file_id}
    error = error_of(api.platform.post("/v1/jobs", {"spec": spec}), 422)
    assert (error["code"], error["param"]) == ("invalid_dataset", "spec.harmful_pairs")
    assert "line 70001" in error["message"]
    assert harm_jobs(api) == []


def harm_jobs(api: Api) -> list[Job]:
    with api.resources.readers() as session:
        return list(session.scalars(select(Job).where(Job.kind != "test.work")))


def test_the_first_bad_lines_are_shown_and_counting_ends(api: Api) -> None:
    key = api.platform
    file = key.upload(jsonl(PAIR) + b"{}\n" * 30).json()
    assert [error["line"] for error in file["validation"]["errors"]] == list(range(2, 2 + SHOWN_PROBLEMS))
    assert (file["validation"]["error_count"], file["rows"]) == (30, 1)
    assert (
        "29 more bad lines" in key.post("/v1/datasets", {"name": "x", "file_id": file["id"]}).json()["error"]["message"]
    )
    assert key.upload(b"{}\n" * 5000).json()["validation"]["error_count"] == MAX_PROBLEMS


@pytest.mark.bad_input(43)
def test_pairs_of_identical_answers_are_warned_of_or_refused(api: Api) -> None:
    key, same = api.platform, {**PAIR, "rejected": PAIR["chosen"]}
    assert warnings(key, jsonl(PAIR, PAIR | {"prompt": "z"}, same)) == {"identical_answers": 1}
    assert found(key, jsonl(PAIR, PAIR, same)) == []
    assert found(key, jsonl(PAIR, same, same)) == [(2, "identical_answers", None)]


MESSAGES = {"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"}
CHAT = {**PAIR, "prompt": [{"role": "user", "content": "a"}]}
ROWS: list[tuple[bytes, list[tuple[int, str, str | None]]]] = [
    (jsonl(PAIR, {**PAIR, "chosen": ""}), [(2, "invalid_value", "chosen")]),
    (jsonl(PAIR, {**PAIR, "chosen": None}), [(2, "missing_field", "chosen")]),
    (jsonl(PAIR, {"prompt": "a", "chosen": "b"}), [(2, "missing_field", "rejected")]),
    (jsonl({"prompt": "a", "completion": "b"}, {"completion": "b"}), [(2, "missing_field", "prompt")]),
    (jsonl(MESSAGES), [(1, "mixed_forms", None)]),
    (
        jsonl(PAIR, {**PAIR, "prompt": [{"role": "user", "content": "a"}], "chosen": MESSAGES["chosen"]}),
        [(2, "mixed_forms", None)],
    ),
    (jsonl(PAIR, {**PAIR, "attribute": "wit"}), [(2, "mixed_forms", None)]),
    (jsonl({"prompt": [{"role": "user", "content": "a"}], "completion": []}), [(1, "invalid_value", "completion")]),
    (jsonl({"messages": [{"role": "user", "content": "a"}]}), [(1, "invalid_value", "messages")]),
    (jsonl({"messages": []}), [(1, "invalid_value", "messages")]),
    (jsonl({"prompt": [{"role": "narrator", "content": "a"}]}), [(1, "invalid_value", "prompt.0.role")]),
    (jsonl({"prompt": [{"role": "user", "content": 7}]}), [(1, "invalid_value", "prompt.0.content")]),
    (jsonl({"prompt": [{"role": "assistant", "content": "a"}]}), [(1, "invalid_value", "prompt")]),
]


@pytest.mark.bad_input(43)
@pytest.mark.parametrize(("content", "expected"), ROWS, ids=range(len(ROWS)))
def test_rows_that_lack_a_field_or_mix_forms_are_refused(
    api: Api, content: bytes, expected: list[tuple[int, str, str]]
) -> None:
    assert found(api.platform, content) == expected


@pytest.mark.bad_input(43)
def test_unknown_columns_are_ignored(api: Api) -> None:
    assert found(api.platform, jsonl({**PAIR, "id": 7, "source": {"deep": [None]}}, PAIR)) == []


USER = {"role": "user", "content": "a"}
NO_PROMPT: list[tuple[Any, Any, str, str]] = [
    ("yes", "no", "no_common_prefix", "row"),
    ("same start", "samestart", "no_common_prefix", "row"),
    ("yes", "yes", "no_common_prefix", "row"),
    ([{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}], "no_common_prefix", "row"),
    ([USER], [USER], "no_answer", "chosen"),
    ([USER, {"role": "assistant", "content": "b"}], [USER, USER], "no_answer", "rejected"),
]


@pytest.mark.bad_input(44)
@pytest.mark.parametrize(("chosen", "rejected", "code", "field"), NO_PROMPT)
def test_answers_without_a_common_prompt_are_refused(
    api: Api, chosen: Any, rejected: Any, code: str, field: str
) -> None:
    assert found(api.platform, jsonl({"chosen": chosen, "rejected": rejected})) == [(1, code, field)]


@pytest.mark.bad_input(45)
def test_oversized_rows_are_named_and_repeated_rows_counted(api: Api) -> None:
    key = api.platform
    huge = b'{"prompt": "' + b"x" * 50_000_000 + b'", "completion": "b"}'
    assert found(key, GOOD + b"\n" + huge + b"\n{}\n") == [
        (2, "row_too_long", None),
        (3, "missing_field", "completion"),
    ]
    assert len(found(key, b"7\n" * 1_000_000)) == SHOWN_PROBLEMS
    assert found(key, (GOOD + b"\n") * 1000) == []
    assert warnings(key, (GOOD + b"\n") * 1000) == {"identical_rows": 999}


JUDGED = {"prompt": "a", "responses": ["b", "c"]}
LABELS: list[tuple[Any, str]] = [
    ({"prompt": "a", "completion": "b", "label": 2}, "label"),
    ({"prompt": "a", "completion": "b", "label": "true"}, "label"),
    ({"prompt": "a", "completion": "b", "scores": {"wit": 1e9}}, "scores.wit"),
    ({"prompt": "a", "completion": "b", "scores": {"wit": "5"}}, "scores.wit"),
    ({"prompt": "a", "completion": "b", "scores": {"Wit!": 5}}, "scores.Wit!.[key]"),
    ({"prompt": "a", "completion": "b", "scores": {}}, "scores"),
    ({**JUDGED, "scores": {"wit": [1]}}, "scores.wit"),
    ({**JUDGED, "scores": {"wit": [1, -1e7]}}, "scores.wit.1"),
    ({**JUDGED, "labels": {"wit": 0}, "scores": {"wit": [1, 2]}}, "row"),
    (JUDGED, "row"),
]


@pytest.mark.bad_input(46)
@pytest.mark.parametrize(("row", "field"), LABELS)
def test_labels_and_scores_out_of_range_are_refused(api: Api, row: Any, field: str) -> None:
    assert found(api.platform, jsonl(row)) == [(1, "invalid_value", field)]


@pytest.mark.bad_input(46)
def test_a_job_with_an_attribute_without_data_is_refused(api: Api) -> None:
    key = api.platform
    model, _ = api.base_model(key.tenant_id)
    ties = key.dataset("preference", [{**JUDGED, "labels": {"wit": 0, "care": None}}])
    arm = {"kind": "arm.train", "base_model": model, "pairs": ties}
    error = error_of(key.post("/v1/jobs", {"spec": {**arm, "attributes": ["wit", "care"]}}), 422)
    assert (error["code"], error["param"]) == ("invalid_dataset", "spec.attributes.1")
    assert key.post("/v1/jobs", {"spec": {**arm, "attributes": ["wit"]}}).status_code == 202

    plain = key.dataset("preference", [PAIR])
    refused = {**arm, "pairs": plain, "attributes": ["wit"]}
    assert error_of(key.post("/v1/jobs", {"spec": refused}), 422)["param"] == "spec.attributes.0"
    assert key.post("/v1/jobs", {"spec": {**refused, "attributes": ["overall"]}}).status_code == 202

    one_sided = key.dataset("preference", [{"prompt": "a", "completion": "b", "label": True}])
    never_paired = {**arm, "pairs": one_sided, "attributes": ["overall"]}
    assert error_of(key.post("/v1/jobs", {"spec": never_paired}), 422)["param"] == "spec.attributes.0"


@pytest.mark.bad_input(48)
def test_files_of_another_purpose_or_tenant_are_refused(api: Api) -> None:
    key, other = api.tenant("acme"), api.tenant("other")
    model_file = key.upload(GOOD, "model").json()["id"]
    foreign = other.upload(GOOD).json()["id"]
    deleted = key.upload(GOOD).json()["id"]
    assert key.request("DELETE", f"/v1/files/{deleted}").json() == {"id": deleted, "object": "file", "deleted": True}

    def register(file_id: str, status: int) -> tuple[str, str]:
        error = error_of(key.post("/v1/datasets", {"name": "x", "file_id": file_id}), status)
        return error["code"], error["param"]

    assert register(model_file, 422) == ("wrong_kind", "file_id")
    for id in (foreign, deleted, "file_../x", "ds_" + "0" * 28):
        assert register(id, 404) == ("not_found", "file_id")
    for id in (foreign, deleted):
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            assert error_of(key.request(method, f"/v1/files/{id}{path}"), 404)["code"] == "not_found"
    assert other.get(f"/v1/files/{foreign}").status_code == 200


@pytest.mark.bad_input(50)
def test_bytes_other_than_announced_are_not_stored(api: Api) -> None:
    key = api.tenant("acme")
    error = error_of(key.upload(GOOD[:-1], sha256="0" * 64), 422)
    assert (error["code"], error["param"]) == ("checksum_mismatch", "sha256")
    assert key.get("/v1/files").json()["data"] == []
    assert list(api.resources.store.list("tenants/")) == []


@pytest.mark.bad_input(53)
def test_the_same_data_in_two_roles_is_warned_of(api: Api) -> None:
    key = api.platform
    model, _ = api.base_model(key.tenant_id)
    rows = [{"prompt": "a", "completion": "b"}]
    spec = {
        "kind": "harm_vector.build",
        "base_model": model,
        "harmful_pairs": key.dataset("prompt_completion", rows),
        "benign_pairs": key.dataset("prompt_completion", rows),
    }
    pairs = key.dataset("preference", [{**JUDGED, "labels": {"wit": 0}}])
    arm = {"kind": "arm.train", "base_model": model, "pairs": pairs, "validation_pairs": pairs, "attributes": ["wit"]}
    for given, roles in ((spec, "harmful_pairs and benign_pairs"), (arm, "pairs and validation_pairs")):
        job = key.post("/v1/jobs", {"spec": given}).json()
        events = key.get(f"/v1/jobs/{job['id']}/events").json()["data"]
        assert ("warn", f"{roles} are the same data") in [(event["level"], event["message"]) for event in events]


@pytest.mark.bad_input(57)
@pytest.mark.parametrize("resource", ["files", "datasets", "jobs", "artifacts", "base_models"])
def test_ids_that_name_nothing_look_alike(api: Api, resource: str) -> None:
    owner, stranger = api.tenant("owner"), api.tenant("stranger")
    owner.dataset("prompt", [{"prompt": "a"}])
    model, _ = api.base_model(owner.tenant_id)
    prompts = owner.get("/v1/datasets").json()["data"][0]["id"]
    spec = {"kind": "harm_vector.build", "base_model": model, "harmful_pairs": owner.upload(GOOD).json()["id"]}
    assert owner.post("/v1/jobs", {"spec": spec}).status_code == 202
    foreign = owner.get(f"/v1/{resource}").json()["data"][0]["id"]
    assert owner.get(f"/v1/{resource}/{foreign}").status_code == 200
    ids = [foreign, "0" * 32, "%2e%2e", "x" * 10_000, prompts[::-1], "%00", "%F0%9F%98%80", "'; drop table files"]
    answers = [error_of(stranger.get(f"/v1/{resource}/{id}"), 404) for id in ids]
    bodies = [{name: value for name, value in answer.items() if name != "request_id"} for answer in answers]
    assert [body for body in bodies if body != bodies[0]] == []
    error_of(stranger.get(f"/v1/{resource}/%2e%2e%2f{foreign}"), 404)


def test_files_and_data_sets_in_use_are_not_deleted(any_api: Api) -> None:
    key = any_api.tenant("acme")
    model, _ = any_api.base_model(key.tenant_id)
    file = key.upload(GOOD).json()
    dataset = key.post("/v1/datasets", {"name": "rows", "file_id": file["id"]}).json()["id"]
    plain = key.upload(GOOD, filename="again.jsonl").json()["id"]
    jobs = [
        key.post("/v1/jobs", {"spec": {"kind": "harm_vector.build", "base_model": model, "harmful_pairs": id}}).json()
        for id in (dataset, plain)
    ]
    needed = [f"/v1/files/{file['id']}", f"/v1/datasets/{dataset}", f"/v1/files/{plain}"]
    for path in needed:
        assert error_of(key.request("DELETE", path), 409)["code"] == "in_use"
    for job in jobs:
        assert key.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert error_of(key.request("DELETE", needed[0]), 409)["code"] == "in_use"  # the data set still uses it
    for path in reversed(needed):
        assert key.request("DELETE", path).json()["deleted"] is True
        assert key.get(path).status_code == 404
    assert key.get("/v1/files").json()["data"] == key.get("/v1/datasets").json()["data"] == []
    blob = blob_key(key.tenant_id, file["sha256"])
    assert any_api.resources.store.head(blob) is not None  # until the sweep
