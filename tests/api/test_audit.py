"""The audit log: each change adds one entry, entries are immutable, and tampering is detected."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete, event, text, update
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from armature.contracts.audit import entry_hash
from armature.db.models import AuditEntry, AuditHead
from tests.api.test_auth import foreign_paths, guarded
from tests.support.api import Api, Key, error_of


def entries(api: Api, tenant_id: str) -> list[dict[str, object]]:
    """Read the tenant's log, oldest first."""
    answer = api.platform.get("/v1/audit", params={"tenant_id": tenant_id, "limit": 100})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][::-1]


def verification(api: Api, tenant_id: str) -> dict[str, object]:
    return api.platform.get("/v1/audit/verification", params={"tenant_id": tenant_id}).json()


def test_an_entry_names_the_key_and_the_change(any_api: Api) -> None:
    key = any_api.tenant("acme")
    headers = {"X-Request-ID": "follow-me-1"}
    profile = key.post("/v1/profiles", {"name": "care", "description": "a secret plan"}, headers=headers).json()
    (entry,) = entries(any_api, key.tenant_id)
    assert entry["action"] == "create_profile"
    assert entry["target"] == f"profiles/{profile['id']}"
    assert (entry["seq"], entry["key_id"], entry["request_id"]) == (1, key.token[3:19], "follow-me-1")
    assert entry["address"] == "testclient"
    assert (entry["before"], len(str(entry["after"]))) == (None, 64)
    assert "secret plan" not in str(entry)
    fields = {name: entry[name] for name in entry if name not in ("object", "hash")}
    assert entry["hash"] == entry_hash(fields, "")


def test_every_changing_route_leaves_an_entry_and_no_other(api: Api) -> None:
    key = api.tenant("acme")
    paths = foreign_paths(api, key)
    for method, path, body in paths:
        before = len(entries(api, key.tenant_id))
        assert key.request(method, path, json=body).status_code < 300
        changes = method != "GET" and not path.endswith("/verify")
        assert len(entries(api, key.tenant_id)) - before == changes, (method, path)
    platform = api.platform.tenant_id
    before = len(entries(api, platform))
    fresh = api.tenant("fresh")
    api.platform.request("PUT", f"/v1/tenants/{fresh.tenant_id}/limits", json={"queued_jobs": 3})
    api.platform.request("DELETE", f"/v1/keys/{fresh.token[3:19]}")
    api.platform.request("DELETE", f"/v1/keys/{fresh.token[3:19]}")  # a repeat changes nothing
    actions = [entry["action"] for entry in entries(api, platform)[before:]]
    assert actions == ["create_tenant", "create_key", "set_limits", "revoke_key"]
    limits = entries(api, platform)[-2]
    assert limits["before"] is not None
    assert limits["before"] != limits["after"]
    assert len(guarded(api)) > len(paths)


def test_a_failed_request_leaves_no_entry(any_api: Api) -> None:
    key = any_api.tenant("acme")
    error_of(key.post("/v1/profiles", {"name": "Not A Name"}), 422)
    key.post("/v1/profiles", {"name": "care"})
    error_of(key.post("/v1/profiles", {"name": "care"}), 409)

    def fail(_: Session) -> None:
        raise OperationalError("COMMIT", None, Exception("lost"))

    event.listen(any_api.resources.writers, "before_commit", fail)
    error_of(key.post("/v1/profiles", {"name": "other"}), 503)
    event.remove(any_api.resources.writers, "before_commit", fail)
    assert len(entries(any_api, key.tenant_id)) == 1
    assert verification(any_api, key.tenant_id)["intact"] is True


def test_concurrent_changes_form_one_chain(any_api: Api) -> None:
    key = any_api.tenant("acme")
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda n: key.post("/v1/profiles", {"name": f"p{n}"}), range(18)))
    assert {answer.status_code for answer in answers} == {201}
    assert [entry["seq"] for entry in entries(any_api, key.tenant_id)] == list(range(1, 19))
    checked = verification(any_api, key.tenant_id)
    assert (checked["entries"], checked["intact"], checked["broken_at"]) == (18, True, None)


def some_entries(api: Api) -> Key:
    key = api.tenant("acme")
    for name in ("a", "b", "c"):
        key.post("/v1/profiles", {"name": name})
    return key


@pytest.mark.parametrize("statement", [update(AuditEntry).values(action="nothing"), delete(AuditEntry)])
def test_the_database_refuses_to_change_the_log(any_api: Api, statement: object) -> None:
    some_entries(any_api)
    with pytest.raises(DatabaseError, match="append-only"), any_api.resources.writers.begin() as session:
        session.execute(statement)  # type: ignore[call-overload]


TAMPERED = {
    "an entry is changed": ("UPDATE audit_entries SET action = 'x' WHERE seq = 2", 2),
    "an entry is missing": ("DELETE FROM audit_entries WHERE seq = 2", 2),
    "the end is missing": ("DELETE FROM audit_entries WHERE seq = 3", 3),
    "all is missing": ("DELETE FROM audit_entries", 1),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_verification_finds_changes_behind_the_databases_back(api: Api, name: str) -> None:
    statement, broken_at = TAMPERED[name]
    key = some_entries(api)
    with api.resources.writers.begin() as session:
        for trigger in ("update", "delete"):
            session.execute(text(f"DROP TRIGGER audit_entries_{trigger}"))
        session.execute(text(f"{statement} {'AND' if 'WHERE' in statement else 'WHERE'} tenant_id = '{key.tenant_id}'"))
    checked = verification(api, key.tenant_id)
    assert (checked["intact"], checked["broken_at"]) == (False, broken_at)
    assert verification(api, api.platform.tenant_id)["intact"] is True


def test_a_log_is_its_tenants(any_api: Api) -> None:
    key = some_entries(any_api)
    reader = any_api.key(key.tenant_id, "audit:read")
    stranger = any_api.tenant("stranger", "audit:read")
    assert len(reader.get("/v1/audit").json()["data"]) == 3
    assert stranger.get("/v1/audit").json()["data"] == []
    refusal = error_of(stranger.get("/v1/audit", params={"tenant_id": key.tenant_id}), 403)
    assert refusal["code"] == "missing_scope"
    for path in ("/v1/audit", "/v1/audit/verification"):
        for unknown in ("ten_none", "../x", "x" * 100):
            assert error_of(any_api.platform.get(path, params={"tenant_id": unknown}), 404)["param"] == "tenant_id"


def test_the_log_is_read_by_pages(api: Api) -> None:
    key = some_entries(api)
    reader = api.key(key.tenant_id, "audit:read")
    first = reader.get("/v1/audit", params={"limit": 2}).json()
    assert ([entry["seq"] for entry in first["data"]], first["has_more"]) == ([3, 2], True)
    last = reader.get("/v1/audit", params={"after": first["last_id"]}).json()
    assert ([entry["seq"] for entry in last["data"]], last["has_more"]) == ([1], False)


def test_the_head_holds_the_last_hash(api: Api) -> None:
    key = some_entries(api)
    with api.resources.readers() as session:
        head = session.get_one(AuditHead, key.tenant_id)
    assert head.hash == entries(api, key.tenant_id)[-1]["hash"] == verification(api, key.tenant_id)["head"]
