"""Lists of jobs: pages, cursors and filters."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.test_job_routes import harm_spec
from tests.support.api import Api, checkpoint, error_of


def test_lists_page_by_key_set(any_api: Api) -> None:
    key = any_api.tenant("acme")
    model = any_api.publish(key.tenant_id, checkpoint())
    ids = [any_api.publish(key.tenant_id, checkpoint(f"m{number}")).job_id for number in range(4)]
    newest_first = [*reversed(ids), model.job_id]
    first = key.get("/v1/jobs?limit=2").json()
    assert [job["id"] for job in first["data"]] == newest_first[:2]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, newest_first[0], newest_first[1])
    any_api.publish(key.tenant_id, checkpoint("late"))  # later rows shift no page
    second = key.get(f"/v1/jobs?limit=2&after={first['last_id']}").json()
    third = key.get(f"/v1/jobs?limit=2&after={second['last_id']}").json()
    assert [job["id"] for job in second["data"] + third["data"]] == newest_first[2:]
    assert not third["has_more"]


def test_lists_are_filtered_and_may_begin_with_the_oldest(any_api: Api) -> None:
    key = any_api.tenant("acme")
    spec = harm_spec(any_api, key)
    tickets = [{"ticket": 'A "1"', "team": "x"}, {"ticket": "A-2", "team": "x"}, {}]
    ids = [key.post("/v1/jobs", {"spec": spec, "metadata": metadata}).json()["id"] for metadata in tickets]
    key.post(f"/v1/jobs/{ids[1]}/cancel")

    def listed(**query: Any) -> list[str]:
        return [job["id"] for job in key.get("/v1/jobs", params=query).json()["data"]]

    assert listed(state="cancelled") == [ids[1]]
    assert listed(kind="harm_vector.build", order="asc") == ids
    assert listed(kind="harm_vector.build", state="queued") == [ids[2], ids[0]]
    assert listed(**{"metadata[team]": "x"}) == [ids[1], ids[0]]
    assert listed(**{"metadata[ticket]": 'A "1"', "metadata[team]": "x"}) == [ids[0]]
    assert listed(**{"metadata[ticket]": "x"}) == []
    # the cursor stays valid although its job left the filtered list
    assert listed(state="queued", order="asc", after=ids[1], kind="harm_vector.build") == [ids[2]]
    assert error_of(key.get("/v1/jobs", params={"metadata[k]": "x" * 513}), 422)["param"] == "metadata"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("jobs", {"kind": "harm_vector.bild", "state": "done", "order": "up"}),
        ("fine_tuning/jobs", {"kind": "harm_vector.bild", "state": "done", "order": "up"}),
        ("artifacts", {"kind": "harm_vector", "order": "up"}),
        ("files", {"purpose": "rows", "order": "up"}),
    ],
)
def test_a_filter_that_nothing_could_pass_is_refused(api: Api, path: str, values: dict[str, str]) -> None:
    parameters = api.client.app.openapi()["paths"][f"/v1/{path}"]["get"]["parameters"]  # type: ignore[attr-defined]
    documented = {parameter["name"]: parameter["schema"] for parameter in parameters}
    for name, value in values.items():
        error = error_of(api.platform.get(f"/v1/{path}", params={name: value}), 422)
        assert (error["code"], error["param"]) == ("invalid_request", name)
        schema = documented[name].get("anyOf", [documented[name]])[0]
        assert schema["enum"][0] in error["message"]
        assert api.platform.get(f"/v1/{path}", params={name: schema["enum"][0]}).status_code == 200


@pytest.mark.parametrize("cursor", ["job_" + "0" * 28, "nonsense", "a%00b", "..%2fx"])
def test_an_unknown_cursor_is_refused(any_api: Api, cursor: str) -> None:
    for name in ("jobs", "datasets", "artifacts", "base_models", "profiles", "tenants"):
        error = error_of(any_api.platform.get(f"/v1/{name}?after={cursor}"), 400)
        assert (error["code"], error["param"]) == ("invalid_cursor", "after")


def test_a_foreign_cursor_is_unknown(api: Api) -> None:
    job_id = api.publish(api.platform.tenant_id, checkpoint()).job_id
    assert error_of(api.tenant("acme").get(f"/v1/jobs?after={job_id}"), 400)["code"] == "invalid_cursor"


@pytest.mark.parametrize("limit", ["0", "-1", "101", "1000000", "abc", "1.5", "NaN", ""])
def test_limits_are_bounded(api: Api, limit: str) -> None:
    assert error_of(api.platform.get(f"/v1/jobs?limit={limit}"), 422)["param"] == "limit"
