"""Uploads and data sets: bytes are stored as sent, and every row is checked on arrival."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from armature.contracts.specs import parse_inputs
from armature.contracts.specs.base import FileInput
from armature.datasets.files.text import MAX_ROW_CHARACTERS
from armature.db.models import Job
from armature.settings import DatabaseSettings, StoreSettings
from armature.storage.artifacts import blob_key
from armature_api.app import create_app
from armature_api.settings import ApiLimits, ApiServiceSettings
from tests.support.api import Api, Key, error_of


def blobs(api: Api) -> list[str]:
    return [item.key for item in api.resources.store.list("tenants/")]


def test_an_upload_is_stored_under_its_hash(any_api: Api) -> None:
    key, content = any_api.tenant("acme"), b"\x00\xff" * 600_000  # more than a form keeps in memory
    sha256 = hashlib.sha256(content).hexdigest()
    answer = key.upload(content, "model", "model.safetensors", sha256=sha256)
    assert answer.status_code == 201
    view = answer.json()
    assert (view["bytes"], view["sha256"], view["purpose"]) == (len(content), sha256, "model")
    assert key.get(f"/v1/files/{view['id']}").json() == view
    assert any_api.resources.store.get_bytes(blob_key(key.tenant_id, sha256)) == content
    again = key.upload(content, "model", "copy.safetensors").json()
    assert again["id"] != view["id"]
    assert blobs(any_api) == [blob_key(key.tenant_id, sha256)]


def test_an_upload_with_another_hash_is_not_stored(api: Api) -> None:
    key = api.tenant("acme")
    error = error_of(key.upload(b"truncated", sha256="0" * 64), 422)
    assert (error["code"], error["param"]) == ("checksum_mismatch", "sha256")
    assert blobs(api) == []


def raw_upload(filename: bytes) -> dict[str, object]:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\ndataset\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="'
        + filename
        + b'"\r\n\r\n{"prompt": "a"}\r\n--b--\r\n'
    )
    return {"content": body, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


@pytest.mark.bad_input(49)
@pytest.mark.parametrize(
    ("filename", "shown"),
    [
        ("../../x", "../../x"),
        ("CON", "CON"),
        ("a\u202egpj.exe", "a\\u202egpj.exe"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("a\x00b", "a\\x00b"),
        ("x" * 4096, "x" * 255),
    ],
)
def test_a_hostile_filename_is_escaped_and_names_no_path(api: Api, filename: str, shown: str) -> None:
    answer = api.platform.request("POST", "/v1/files", **raw_upload(filename.encode()))
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert view["filename"] == shown
    assert blobs(api) == [blob_key(api.platform.tenant_id, view["sha256"])]
    download = api.platform.get(f"/v1/files/{view['id']}/content")
    assert download.content == b'{"prompt": "a"}'
    assert "\n" not in download.headers["content-disposition"]


def test_malformed_uploads(api: Api) -> None:
    key = api.tenant("acme")
    file = {"file": ("a", b"x")}

    def post(**arguments):  # type: ignore[no-untyped-def]
        return key.request("POST", "/v1/files", **arguments)

    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    assert error_of(key.upload(b"x", purpose="assistants"), 422)["param"] == "purpose"
    assert error_of(post(files=file), 422)["code"] == "missing_field"
    assert error_of(post(data={"purpose": "dataset"}), 415)["code"] == "unsupported_media_type"
    assert error_of(post(json={"purpose": "dataset"}), 415)["code"] == "unsupported_media_type"
    assert error_of(post(files={"file": (None, b"text")}, data={"purpose": "dataset"}), 422)["param"] == "file"
    assert error_of(key.upload(b"x", sha256="nonsense"), 422)["param"] == "sha256"
    assert error_of(key.upload(b"x", harmful="perhaps"), 422)["param"] == "harmful"
    assert error_of(key.upload(b"x", tenant_id="mine"), 422)["code"] == "unknown_field"
    twice = {"purpose": ["dataset", "model"]}
    assert error_of(post(files=file, data=twice), 400)["code"] == "duplicate_key"
    assert error_of(post(content=b"nonsense", headers=multipart), 400)["code"] == "malformed_body"
    assert error_of(post(content=b"", headers=multipart), 422)["code"] == "missing_field"
    assert error_of(post(files=[("file", ("a", b"1")), ("file", ("b", b"2"))], data={"purpose": "dataset"}), 400)
    assert blobs(api) == []


# Starlette leaves the temporary file of an unfinished part to the garbage collector, which warns.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function SpooledTemporaryFile")
def test_a_truncated_upload_is_not_stored(api: Api) -> None:
    truncated = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\ndataset\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf of it'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = api.platform.request("POST", "/v1/files", content=truncated, headers=headers)
    assert error_of(answer, 422)["param"] == "file"
    assert blobs(api) == []


def test_uploads_are_limited_apart_from_other_bodies(sqlite_settings: DatabaseSettings, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from armature_api.bootstrap import bootstrap

    settings = ApiServiceSettings(
        database=sqlite_settings,
        store=StoreSettings(path=tmp_path / "store"),
        api=ApiLimits(max_body=1000, max_upload=20_000, max_rows_file=12_000),
    )
    first = bootstrap(settings)
    assert first is not None
    with TestClient(create_app(settings)) as client:
        key = Key(client, first.tenant_id, first.token)
        assert key.upload(b"x" * 10_000).status_code == 201
        assert error_of(key.upload(b"x" * 20_000), 413)["code"] == "payload_too_large"
        assert key.upload(b"x" * 15_000, "model").status_code == 201
        rows = error_of(key.upload(b"x" * 15_000), 413)
        assert (rows["code"], rows["param"]) == ("payload_too_large", "file")
        assert error_of(key.post("/v1/tenants", {"name": "x" * 1000}), 413)["code"] == "payload_too_large"

        def without_length():  # type: ignore[no-untyped-def]
            yield from (b'{"name": "' + b"x" * 600, b"x" * 600, b'"}')

        answer = key.request(
            "POST", "/v1/tenants", content=without_length(), headers={"Content-Type": "application/json"}
        )
        assert error_of(answer, 413)["code"] == "payload_too_large"


def register(key: Key, content: bytes, format: str = "prompt"):  # type: ignore[no-untyped-def]
    file_id = key.upload(content).json()["id"]
    return key.post("/v1/datasets", {"name": "rows", "file_id": file_id, "format": format})


def test_a_data_set_knows_its_rows(any_api: Api) -> None:
    key = any_api.tenant("acme")
    answer = register(key, b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b", "source": 7}\r\n')
    assert answer.status_code == 201
    view = answer.json()
    assert (view["rows"], view["format"], view["name"]) == (2, "prompt", "rows")
    assert key.get(f"/v1/datasets/{view['id']}").json() == view
    assert key.get("/v1/datasets").json()["data"] == [view]


GOOD = b'{"prompt": "a"}\n'
BAD_ROWS = [
    (b"", "prompt", "file_id"),
    (b"\n\n", "prompt", "file_id"),
    (GOOD * 3 + b"{,}\n" + GOOD, "prompt", "line.4"),
    (GOOD + b"\n" + GOOD, "prompt", "line.2"),
    (GOOD + b'{"prompt": ""}\n', "prompt", "line.2.prompt"),
    (GOOD + b'{"prompt": 7}\n', "prompt", "line.2.prompt"),
    (GOOD + b"[]\n", "prompt", "line.2.row"),
    (b'{"prompt": "a", "prompt": "b"}\n', "prompt", "line.1"),
    (b'{"prompt": "\\ud800"}\n', "prompt", "line.1.prompt"),
    (b'{"prompt": "\\u0000"}\n', "prompt", "line.1.prompt"),
    (b'{"prompt": "\xff"}\n', "prompt", "line.1.prompt"),
    (b'{"prompt": "a", "completion": null}\n', "prompt_completion", "format"),
    (b'{"prompt": "a", "responses": ["b", "b"], "labels": {"wit": 1}}\n', "preference", "line.1"),
    (b'{"prompt": "a", "responses": ["b", "c"], "labels": {"wit": 0.5}}\n', "preference", "line.1.labels.wit"),
    (b'{"prompt": "a", "responses": ["b", "c"], "labels": {"wit": NaN}}\n', "preference", "line.1.labels.wit"),
    (b'{"prompt": "a", "responses": ["b", "c"], "labels": {"wit": true}}\n', "preference", "line.1.labels.wit"),
    (b'{"prompt": "a", "responses": ["b", "c"], "labels": {"wit": 0.0}}\n', "preference", "line.1.labels.wit"),
    (b'{"prompt": "a", "responses": ["b", "c"], "labels": {"wit": 2}}\n', "preference", "line.1.labels.wit"),
    (b'{"attributes": {"wit": ["a"]}}\n' * 2, "lexicon", "line.2"),
    (b"[" * 200_000, "prompt", "line.1"),
    (b'{"prompt": "' + b"x" * (MAX_ROW_CHARACTERS + 1) + b'"}', "prompt", "line.1"),
]


@pytest.mark.parametrize(("content", "format", "param"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_the_first_bad_line_is_named(api: Api, content: bytes, format: str, param: str) -> None:
    key = api.tenant("acme")
    error = error_of(register(key, content, format), 422)
    assert error["code"] == "invalid_dataset"
    assert error["param"] == param
    assert key.get("/v1/datasets").json()["data"] == []


def test_a_file_for_another_purpose_is_no_data_set(api: Api) -> None:
    key = api.tenant("acme")
    file_id = key.upload(GOOD, "model").json()["id"]
    error = error_of(key.post("/v1/datasets", {"name": "x", "file_id": file_id, "format": "prompt"}), 422)
    assert (error["code"], error["param"]) == ("wrong_kind", "file_id")


def test_checking_rows_holds_no_write_lock(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite has one write lock; reading a large file does not hold it."""
    from armature_api.files import service

    key = api.tenant("acme")
    real = service.scan_rows

    def while_reading(*arguments):  # type: ignore[no-untyped-def]
        assert api.platform.post("/v1/tenants", {"name": "meanwhile"}).status_code == 201
        return real(*arguments)

    monkeypatch.setattr(service, "scan_rows", while_reading)
    assert key.upload(GOOD).status_code == 201


def test_a_damaged_blob_is_noticed(api: Api) -> None:
    key = api.tenant("acme")
    view = key.upload(GOOD).json()
    api.resources.store.put_bytes(blob_key(key.tenant_id, view["sha256"]), GOOD.replace(b"a", b"b"))
    assert error_of(key.get(f"/v1/files/{view['id']}/content"), 500)["code"] == "artifact_corrupt"


def test_rows_round_trip(api: Api) -> None:
    rows = [{"prompt": f"question {number}"} for number in range(1000)]
    assert register(api.platform, "\n".join(map(json.dumps, rows)).encode()).json()["rows"] == 1000


CHOICES = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "d", "chosen": "e", "rejected": "f"}\n'


def test_a_data_set_says_what_its_choices_are_about(any_api: Api) -> None:
    key = any_api.tenant("acme")
    file_id = key.upload(CHOICES, "fine-tune").json()["id"]

    def create(**more: str) -> dict[str, Any]:
        answer = key.post("/v1/datasets", {"name": "rows", "file_id": file_id, **more})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    named, unnamed = create(attribute="wit"), create()
    assert (named["attribute"], unnamed["attribute"]) == ("wit", "overall")
    assert (named["format"], named["usable_as"]) == ("preference", ["preference", "prompt"])
    assert named["statistics"]["attributes"] == {"wit": {"labels": 2, "first_share": 1.0, "ties": 0, "tie_share": 0.0}}
    assert list(unnamed["statistics"]["attributes"]) == ["overall"]
    assert create(format="prompt")["usable_as"] == ["prompt"]
    assert key.get(f"/v1/datasets/{named['id']}").json() == named

    model, _ = any_api.base_model(key.tenant_id)
    spec = {"kind": "arm.train", "base_model": model, "pairs": named["id"], "attributes": ["wit"]}
    assert key.post("/v1/jobs", {"spec": spec}).status_code == 202
    with any_api.resources.readers() as session:
        (inputs,) = session.scalars(select(Job.inputs).where(Job.kind == "arm.train"))
    pairs = parse_inputs(inputs)["pairs"]
    assert isinstance(pairs, FileInput)
    assert (pairs.id, pairs.attribute, pairs.sha256) == (named["id"], "wit", named["sha256"])


def test_a_data_set_does_not_rename_what_its_rows_name(api: Api) -> None:
    key = api.tenant("acme")
    for content in (GOOD, b'{"prompt": "a", "chosen": "b", "rejected": "c", "attribute": "wit"}'):
        file_id = key.upload(content).json()["id"]
        body = {"name": "rows", "file_id": file_id, "attribute": "care"}
        assert error_of(key.post("/v1/datasets", body), 422)["param"] == "attribute"


def test_a_format_asked_for_must_be_served(api: Api) -> None:
    key = api.tenant("acme")
    error = error_of(register(key, GOOD, "preference"), 422)
    assert (error["code"], error["param"]) == ("invalid_dataset", "format")


def test_dialogues_are_completions_and_prompts(api: Api) -> None:
    key = api.tenant("acme")
    dialogue = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    view = key.upload(json.dumps({"messages": dialogue}).encode()).json()
    assert (view["format"], view["rows"], view["status"]) == ("messages", 1, "processed")
    model, _ = api.base_model(key.tenant_id)
    spec = {"kind": "harm_vector.build", "base_model": model, "harmful_pairs": view["id"]}
    assert key.post("/v1/jobs", {"spec": spec}).status_code == 202
    arm = {"kind": "arm.train", "base_model": model, "pairs": view["id"]}
    error = error_of(key.post("/v1/jobs", {"spec": arm}), 422)
    assert (error["code"], error["param"]) == ("wrong_kind", "spec.pairs")


def test_lists_page_by_cursor(api: Api) -> None:
    key = api.tenant("acme")
    ids = [key.upload(GOOD, purpose).json()["id"] for purpose in ("dataset", "evals", "dataset", "model")]
    first = key.get("/v1/files?limit=3").json()
    assert ([file["id"] for file in first["data"]], first["has_more"]) == (ids[:0:-1], True)
    key.upload(GOOD)  # later rows shift no page
    rest = key.get(f"/v1/files?after={first['last_id']}").json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (ids[:1], False)
    assert [file["id"] for file in key.get("/v1/files?purpose=evals").json()["data"]] == [ids[1]]
    foreign = api.tenant("other").get(f"/v1/files?after={ids[0]}")
    assert error_of(foreign, 400)["code"] == "invalid_cursor"
