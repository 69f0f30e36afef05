"""The commands against the real API: output for people and for programs, and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from armature_cli.main import app
from tests.support.api import Api, Parts, listening

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
def test_mistakes(world: Api, arguments: list[str], code: int) -> None:
    result = run(*arguments, code=code, input="{}")
    assert "Traceback" not in result.stderr
    assert world.platform.token not in result.output


def test_no_environment_wrong_key_nobody_there(world: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMATURE_API_KEY", "ak_0000000000000000_" + "x" * 43)
    run("jobs", "list", code=3)
    assert [finding["check"] for finding in read("doctor", code=3) if not finding["ok"]] == ["key"]
    monkeypatch.setenv("ARMATURE_API_URL", "http://127.0.0.1:1")
    run("jobs", "list", code=4)
    run("doctor", code=4)
    monkeypatch.delenv("ARMATURE_API_KEY")
    assert "ARMATURE_API_KEY" in run("jobs", "list", code=2).stderr
