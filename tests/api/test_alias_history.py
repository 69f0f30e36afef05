"""Aliases over time: rollbacks, the history of moves, and canary splits."""

from __future__ import annotations

from typing import Any

from armature.contracts.base import digest
from armature_api.relay.serving_snapshot import build_snapshot
from tests.api.test_aliases import ALIAS, move, versions
from tests.support.api import Api, Key, Parts, error_of


def history(key: Key) -> list[tuple[int, bool]]:
    moves = key.get(f"{ALIAS}/history").json()["data"]
    assert [move["seq"] for move in moves] == list(range(len(moves), 0, -1))
    return [(move["version"], move["rollback"]) for move in moves]


def test_a_rollback_is_one_call_and_stays_in_the_history(any_api: Api) -> None:
    key = any_api.tenant("acme")
    versions(key, Parts(any_api, key), 3)
    error_of(key.post(f"{ALIAS}/rollback", {}), 404)
    move(key, 1)
    assert error_of(key.post(f"{ALIAS}/rollback", {}), 409)["code"] == "nothing_to_roll_back"
    move(key, 2)
    move(key, 2)  # a repeat is a move but no new step
    move(key, 3)
    assert error_of(key.post(f"{ALIAS}/rollback", {"if_version": 2}), 409)["code"] == "version_conflict"
    assert key.post(f"{ALIAS}/rollback", {"if_version": 3}).json()["version"] == 2
    assert key.post(f"{ALIAS}/rollback").json()["version"] == 1  # the body is optional
    error_of(key.post(f"{ALIAS}/rollback", {}), 409)
    assert key.get(ALIAS).json()["version"] == 1
    assert history(key) == [(1, True), (2, True), (3, False), (2, False), (2, False), (1, False)]
    page = key.get(f"{ALIAS}/history?limit=2").json()
    rest = key.get(f"{ALIAS}/history?limit=100&after={page['last_id']}").json()["data"]
    assert [move["seq"] for move in page["data"] + rest] == [6, 5, 4, 3, 2, 1]


def test_a_canary_reaches_the_snapshot_and_ends_with_the_next_move(any_api: Api) -> None:
    key = any_api.tenant("acme")
    versions(key, Parts(any_api, key), 2)
    view = key.request("PUT", ALIAS, json={"version": 1, "canary": {"version": 2, "weight": 0.25}}).json()
    assert view["canary"] == {"version": 2, "weight": 0.25}

    def served() -> Any:
        with any_api.resources.readers() as session:
            tenants = build_snapshot(session).tenants
        return next(model for tenant in tenants for model in tenant.models)

    assert (served().version, served().canary.version, served().canary.weight) == (1, 2, 0.25)
    assert served().canary.manifest.backbone.model_digest == digest("base")
    move(key, 2)
    assert (served().version, served().canary) == (2, None)
    for canary, status in (
        ({"version": 1, "weight": 0.0}, 422),
        ({"version": 1, "weight": 1.0}, 422),
        ({"version": 2, "weight": 0.5}, 422),
        ({"version": 9, "weight": 0.5}, 404),
        ({"version": 1}, 422),
    ):
        error_of(key.request("PUT", ALIAS, json={"version": 2, "canary": canary}), status)
    assert key.get(ALIAS).json()["canary"] is None
