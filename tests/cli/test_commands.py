"""The commands against the real API: tables, JSON, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from armature_cli.main import app
from tests.support.api import Api, Parts, listening
from tests.support.scripted_server import Answer, run_script

LEXICON = '{"attributes": {"empathy": ["kind"]}, "harmful": [], "refusals": []}\n'


@pytest.fixture
def world(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with listening(api) as url:
        monkeypatch.setenv("ARMATURE_API_URL", url)
        monkeypatch.setenv("ARMATURE_API_KEY", api.platform.token)
        yield api


def run(*arguments: str, code: int = 0, input: str | None = None) -> Result:
    result = CliRunner().invoke(app, arguments, input=input)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def read(*arguments: str, **options: Any) -> Any:
    return json.loads(run(*arguments, "--json", **options).stdout)


@pytest.mark.slow
def test_from_a_file_to_a_live_profile(world: Api, tmp_path: Path) -> None:
    parts = Parts(world, world.platform)
    lexicon = tmp_path / "lexicon.jsonl"
    lexicon.write_text(LEXICON)
    (uploaded,) = read("files", "upload", str(lexicon))
    assert uploaded["rows"] == 1
    dataset = read("datasets", "create", "lexicon", str(lexicon), "--format", "lexicon")
    assert [item["id"] for item in read("datasets", "list")] == [dataset["id"]]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n')
    asked = read("datasets", "create", "prompts", str(prompts))
    spec = {"kind": "evaluation.run", "base_model": "base", "lexicon": dataset["id"], "attributes": ["empathy"]}
    spec["prompts"] = asked["id"]
    job = read("jobs", "create", "-", "--metadata", "ticket=7", input=json.dumps(spec))
    assert job["metadata"] == {"ticket": "7"}
    assert job["id"] in run("jobs", "list").stdout
    assert read("jobs", "cancel", job["id"])["state"] == "cancelled"
    run("jobs", "watch", job["id"], code=1)
    assert "cancelled" in run("jobs", "logs", job["id"]).stdout
    writing = {"kind": "pairs.generate", "prompts": asked["id"], "attributes": ["empathy"]}
    writing["teachers"] = [{"type": "base_model", "base_model": "base"}]  # type: ignore[assignment]
    submitted = run("jobs", "create", "-", input=json.dumps(writing))
    assert "at most 2 answers, 192 generated tokens" in submitted.stderr
    combination = tmp_path / "version.json"
    combination.write_text(json.dumps(parts.body()))
    assert [read("profiles", "freeze", "care", str(combination))["version"] for _ in range(2)] == [1, 2]
    assert read("profiles", "promote", "care", "1")["version"] == 1
    assert read("profiles", "promote", "care", "1", "--canary", "2:0.25")["canary"] == {"version": 2, "weight": 0.25}
    read("profiles", "promote", "care", "2", "--if-version", "1")
    assert read("profiles", "rollback", "care")["version"] == 1
    assert [move["version"] for move in read("profiles", "history", "care")] == [1, 2, 1, 1]
    rules = read("profiles", "gate", "care", "asr_high<=0.05", "mip >= 0.2")["rules"]
    assert [(rule["metric"], rule["at_most"], rule["at_least"]) for rule in rules] == [
        ("asr_high", 0.05, None),
        ("mip", None, 0.2),
    ]
    assert "gate_not_passed" in run("profiles", "promote", "care", "2", code=1).stderr
    read("models", "alias", "best", parts.model)
    assert [item["alias"] for item in read("models", "aliases")] == ["best"]
    assert read("models", "create", "named", parts.base.id)["artifact_id"] == parts.base.id


def test_a_file_is_checked_before_it_becomes_a_data_set(world: Api, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,completion,quality\nIs it?,yes,3\nWhy?,,2\n")
    checked = read("datasets", "create", "rows", str(rows), "--check")
    assert (checked["form"], checked["container"], checked["rows"]) == ("prompt_completion", "csv", 1)
    assert checked["sample"] == [{"prompt": "Is it?", "completion": "yes"}]
    assert [warning["code"] for warning in checked["validation"]["warnings"]] == ["unused_judgements"]
    assert read("files", "list") == read("datasets", "list") == []
    assert "line 3: completion" in run("datasets", "create", "rows", str(rows), code=2).stderr
    (file,) = read("files", "list")
    assert read("datasets", "create", "rows", file["id"], "--check") == checked
    skipping = read("datasets", "create", "rows", file["id"], "--on-bad-rows", "skip")
    assert (skipping["rows"], skipping["bad_rows"]) == (1, 1)


def test_artifacts(world: Api, tmp_path: Path) -> None:
    parts = Parts(world, world.platform)
    listed = read("artifacts", "list", "--kind", "adapter")
    assert [item["id"] for item in listed] == [parts.arm.id]
    run("artifacts", "download", parts.arm.id, str(tmp_path / "arm"))
    assert (tmp_path / "arm/config.json").is_file()
    assert all(file["ok"] for file in read("artifacts", "verify", parts.arm.id))
    run("artifacts", "lineage", parts.arm.id)
    assert "no_links" in run("artifacts", "link", parts.arm.id, "config.json", code=1).stderr
    run("artifacts", "delete", parts.arm.id)
    run("artifacts", "get", parts.arm.id, code=1)


def test_keys(world: Api) -> None:
    key = read("keys", "create", "team", "--scope", "generate")
    assert key["scopes"] == ["generate"]
    assert "team" in run("keys", "tenants").stdout
    assert read("keys", "revoke", key["id"])["revoked_at"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["jobs", "create", "no-such-file.json"], 2),
        (["jobs", "create", "-", "--metadata", "x"], 2),
        (["jobs", "get", "job_1"], 1),
        (["jobs", "list", "--limit", "0"], 2),
        (["profiles", "gate", "care", "asr"], 2),
        (["profiles", "promote", "care", "1", "--canary", "2"], 2),
        (["datasets", "create", "Not A Name", "file_1"], 2),
        (["generate", "care", "hi", "--pref", "empathy"], 2),
        (["generate", "care", "hi", "--pref", "empathy=much"], 2),
    ],
)
def test_invalid_arguments_end_with_an_exit_code(world: Api, arguments: list[str], code: int) -> None:
    result = run(*arguments, code=code, input="{}")
    assert "Traceback" not in result.stderr
    assert world.platform.token not in result.output


def test_a_wrong_key_and_an_unreachable_platform(world: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMATURE_API_KEY", "ak_0000000000000000_" + "x" * 43)
    run("jobs", "list", code=3)
    assert [finding["check"] for finding in read("doctor", code=3) if not finding["ok"]] == ["key"]
    monkeypatch.setenv("ARMATURE_API_URL", "http://127.0.0.1:1")
    assert run("jobs", "list", code=4).stderr.startswith("error: no answer from http://127.0.0.1:1: ConnectError")
    run("doctor", code=4)


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"ARMATURE_API_KEY": "ak_1"}, "ARMATURE_API_URL"),
        ({"ARMATURE_API_KEY": "ak_1", "ARMATURE_API_URL": "127.0.0.1:8000"}, "ARMATURE_API_URL"),
        ({"ARMATURE_API_KEY": "ak_1", "ARMATURE_API_URL": "http://:80"}, "ARMATURE_API_URL"),
        ({"ARMATURE_API_URL": "http://127.0.0.1:1"}, "ARMATURE_API_KEY"),
        ({"ARMATURE_API_URL": "http://127.0.0.1:1", "ARMATURE_API_KEY": "ak_secret\n"}, "ARMATURE_API_KEY"),
        ({"ARMATURE_API_URL": "http://127.0.0.1:1", "ARMATURE_API_KEY": "ak_secret\xe9"}, "ARMATURE_API_KEY"),
        (
            {"ARMATURE_API_URL": "http://127.0.0.1:1", "ARMATURE_API_KEY": "ak_1", "ARMATURE_DECODER_URL": "decoder"},
            "ARMATURE_DECODER_URL",
        ),
    ],
)
def test_a_missing_address_or_key_is_named_in_one_line(
    environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ARMATURE_API_URL", "ARMATURE_API_KEY", "ARMATURE_DECODER_URL"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    stderr = run("jobs", "list", code=5).stderr
    assert stderr.startswith(f"error: {name} ")
    assert stderr.count("\n") == 1
    findings = read("doctor", code=5)
    assert [finding["check"] for finding in findings if not finding["ok"]] == [name]
    assert "secret" not in stderr + str(findings)


def refusal(status: int, type: str, code: str, param: str | None = None, **headers: str) -> Answer:
    error = {"message": "no", "type": type, "param": param, "code": code}
    return Answer(status, json.dumps({"error": error}).encode(), {"retry-after": "0", **headers})


BUSY = refusal(429, "rate_limit_error", "rate_limited")
LATER = refusal(429, "rate_limit_error", "rate_limited", **{"retry-after": "37"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ([refusal(401, "authentication_error", "invalid_api_key")], 3, "401 invalid_api_key: no"),
        ([refusal(403, "permission_error", "missing_scope", "shared")], 3, "403 missing_scope: no (shared)"),
        ([refusal(403, "quota_error", "quota_exceeded")], 1, "403 quota_exceeded: no"),
        ([refusal(404, "not_found_error", "not_found")], 1, "404 not_found: no"),
        ([refusal(409, "conflict_error", "name_taken", "spec.name")], 1, "409 name_taken: no (spec.name)"),
        ([refusal(422, "invalid_request_error", "unknown_field", "spec.sed")], 2, "422 unknown_field: no (spec.sed)"),
        ([BUSY, BUSY, LATER], 6, "429 rate_limited: no; try again in 37 s"),
        ([refusal(503, "unavailable_error", "unavailable")], 6, "503 unavailable: no"),
        ([Answer(500, b"<h1>proxy</h1>", {"retry-after": "0"})], 1, "500 not_an_envelope: <h1>proxy</h1>"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_refusal_is_one_line_and_an_exit_code(
    answers: list[Answer], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_script(answers) as server:
        monkeypatch.setenv("ARMATURE_API_URL", server.url)
        monkeypatch.setenv("ARMATURE_API_KEY", "ak_1")
        assert run("jobs", "list", code=code).stderr == f"error: {said}\n"
