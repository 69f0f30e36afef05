"""Files that people have, through the API: a check that stores nothing, bad rows that are skipped, stock clients."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import select

from armature.contracts.specs import parse_inputs
from armature.contracts.specs.base import FileInput
from armature.datasets.scan import MAX_PROBLEMS
from armature.db.models import AuditEntry, File, Job
from tests.support.api import Api, Key, error_of

PAIRS = [{"prompt": f"question {number}", "chosen": "yes", "rejected": "no"} for number in range(5)]


def jsonl(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def check(key: Key, content: bytes, **fields: str) -> Any:
    return key.request("POST", "/v1/dataset_checks", files={"file": ("rows", content)}, data=fields)


def test_a_check_shows_form_rows_and_warnings_and_stores_nothing(api: Api) -> None:
    key = api.tenant("acme", "data:write", "data:read")
    answer = check(key, gzip.compress(jsonl(*({**row, "score_chosen": 4} for row in PAIRS), {"chosen": "b"})))
    assert answer.status_code == 200, answer.text
    view = answer.json()
    assert (view["object"], view["form"], view["format"]) == ("dataset.check", "chosen_rejected", "preference")
    assert (view["container"], view["usable_as"]) == ("json_lines", ["preference", "prompt"])
    assert (view["needs_attribute"], view["conversational"], view["rows"]) == (True, False, 5)
    assert view["sample"] == [
        {"prompt": row["prompt"], "responses": ["yes", "no"], "labels": {"overall": 0}} for row in PAIRS[:3]
    ]
    assert [error["line"] for error in view["validation"]["errors"]] == [6]
    assert view["validation"]["skippable"] is True
    assert [warning["code"] for warning in view["validation"]["warnings"]] == ["unused_judgements"]
    assert key.get("/v1/files").json()["data"] == key.get("/v1/datasets").json()["data"] == []
    assert list(api.resources.store.list("tenants/")) == []
    with api.resources.readers() as session:
        assert session.scalars(select(File)).all() == []
        assert session.scalars(select(AuditEntry).where(AuditEntry.tenant_id == key.tenant_id)).all() == []


def test_a_check_of_what_can_not_be_read_says_why(api: Api) -> None:
    view = check(api.platform, b"%PDF-1.7\n").json()
    assert (view["format"], view["rows"], view["sample"]) == (None, 0, [])
    assert "a PDF" in view["validation"]["errors"][0]["message"]


def test_malformed_checks(api: Api) -> None:
    key = api.tenant("acme")
    assert error_of(check(key, b"x", purpose="dataset"), 422)["code"] == "unknown_field"
    assert error_of(key.post("/v1/dataset_checks", {}), 415)["code"] == "unsupported_media_type"
    assert error_of(check(api.tenant("reader", "data:read"), b"x"), 403)["code"] == "missing_scope"


@pytest.mark.process
def test_a_parquet_file_becomes_a_data_set(api: Api) -> None:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(PAIRS), target)
    file = api.platform.upload(target.getvalue(), "fine-tune").json()
    assert (file["container"], file["form"], file["rows"], file["status"]) == (
        "parquet",
        "chosen_rejected",
        5,
        "processed",
    )
    view = api.platform.post("/v1/datasets", {"name": "pairs", "file_id": file["id"]}).json()
    assert (view["format"], view["form"], view["rows"]) == ("preference", "chosen_rejected", 5)


BAD = jsonl(*PAIRS, {"prompt": "a", "chosen": "b", "rejected": ""}, {"prompt": "c"})


def create(key: Key, content: bytes, **more: Any) -> Any:
    file_id = key.upload(content).json()["id"]
    return key.post("/v1/datasets", {"name": "rows", "file_id": file_id, **more})


@pytest.mark.bad_input(43)
def test_bad_rows_are_refused_or_skipped_by_data_set_and_job_alike(any_api: Api) -> None:
    key = any_api.tenant("acme")
    error = error_of(create(key, BAD), 422)
    assert (error["code"], error["param"]) == ("invalid_dataset", "line.6.rejected")
    assert "`on_bad_rows: skip` leaves them out" in error["message"]
    answer = create(key, BAD, on_bad_rows="skip")
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert (view["rows"], view["bad_rows"], view["on_bad_rows"]) == (5, 2, "skip")
    assert view["statistics"]["pairs"] == 5
    file = key.get(f"/v1/files/{view['file_id']}").json()
    assert [error["line"] for error in file["validation"]["errors"]] == [6, 7]
    whole = create(key, jsonl(*PAIRS), on_bad_rows="skip").json()
    assert (whole["bad_rows"], whole["on_bad_rows"]) == (0, "refuse")

    model, _ = any_api.base_model(key.tenant_id)
    spec = {"kind": "arm.train", "base_model": model, "attributes": ["overall"]}
    by_file = key.post("/v1/jobs", {"spec": {**spec, "pairs": view["file_id"]}})
    assert error_of(by_file, 422)["code"] == "invalid_dataset"
    given = {"pairs": view["id"], "validation_pairs": whole["id"]}
    assert key.post("/v1/jobs", {"spec": {**spec, **given}}).status_code == 202
    with any_api.resources.readers() as session:
        (inputs,) = session.scalars(select(Job.inputs).where(Job.kind == "arm.train"))
    read = {role: value for role, value in parse_inputs(inputs).items() if isinstance(value, FileInput)}
    assert {role: value.on_bad_rows for role, value in read.items()} == {"pairs": "skip", "validation_pairs": "refuse"}


@pytest.mark.bad_input(43)
def test_errors_of_the_whole_file_are_not_skipped(api: Api) -> None:
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    broken = gzip.compress(jsonl(*PAIRS))[:-9]
    for content in (jsonl(same, same), broken, b"{}\n" * 5, b"%PDF", b"{}\n" * (MAX_PROBLEMS + 5)):
        assert error_of(create(api.platform, content, on_bad_rows="skip"), 422)["code"] == "invalid_dataset"
    many = jsonl(*PAIRS) * 300 + b"{}\n" * (MAX_PROBLEMS + 5)
    view = create(api.platform, many, on_bad_rows="skip").json()
    assert (view["rows"], view["bad_rows"]) == (1500, MAX_PROBLEMS + 5)
    assert error_of(create(api.platform, BAD, on_bad_rows="perhaps"), 422)["param"] == "on_bad_rows"


@pytest.mark.bad_input(41)
def test_a_fine_tuning_file_is_refused_by_the_clients_own_field(api: Api) -> None:
    key = api.platform
    model, _ = api.base_model(key.tenant_id)

    def refused(**fields: str) -> Any:
        return error_of(key.post("/v1/fine_tuning/jobs", {"model": model, **fields}), 422)

    bad = key.upload(BAD, "fine-tune").json()["id"]
    error = refused(training_file=bad)
    assert (error["code"], error["param"]) == ("invalid_dataset", "training_file")
    assert "line 6: rejected" in error["message"]
    zipped = key.upload(b"PK\x03\x04rows.jsonl", "fine-tune").json()["id"]
    assert "a zip archive; unpack it" in refused(training_file=zipped)["message"]
    good = key.upload(jsonl(*PAIRS), "fine-tune").json()["id"]
    assert refused(training_file=good, validation_file=bad)["param"] == "validation_file"
    chat = jsonl({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    error = refused(training_file=key.upload(chat, "fine-tune").json()["id"])
    assert (error["code"], error["param"]) == ("wrong_kind", "training_file")


def test_openai_preference_rows_train_an_arm(api: Api) -> None:
    key = api.platform
    model, _ = api.base_model(key.tenant_id)
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"question {number}"}]},
            "preferred_output": [{"role": "assistant", "content": "yes"}],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        for number in range(4)
    ]
    file = key.upload(jsonl(*rows), "fine-tune").json()
    assert file["form"] == "openai_preference"
    job = key.post("/v1/fine_tuning/jobs", {"model": model, "training_file": file["id"]})
    assert job.status_code == 200, job.text
