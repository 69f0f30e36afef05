"""Aliases: moves by compare-and-set and promotion gates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from armature.contracts.aliases import AliasMoveRequest
from armature.contracts.artifacts import Parent, ReportMetadata
from armature.contracts.base import digest
from armature.contracts.sda import SdaSteering
from armature.contracts.tenants import TenantLimits
from armature.db.models import Installation
from armature.errors import VersionConflict
from armature_api.callers import Caller
from armature_api.profiles import aliases
from tests.support.api import Api, Key, Parts, adapter, checkpoint, error_of
from tests.support.stages import STAGE_EXAMPLES, as_evaluated

ALIAS = "/v1/profiles/care/aliases/live"


def revision(api: Api) -> int:
    with api.resources.readers() as session:
        return session.scalars(select(Installation.serving_revision)).one()


def versions(key: Key, parts: Parts, count: int) -> None:
    for _ in range(count):
        assert key.post("/v1/profiles/care/versions", {"base_model": parts.model}).status_code == 201


def move(key: Key, version: int, if_version: int | None = None, alias: str = "live"):  # type: ignore[no-untyped-def]
    body = {"version": version} if if_version is None else {"version": version, "if_version": if_version}
    return key.request("PUT", f"/v1/profiles/care/aliases/{alias}", json=body)


def test_aliases_move_by_compare_and_set(any_api: Api) -> None:
    key = any_api.tenant("acme")
    parts = Parts(any_api, key)
    for _ in range(3):
        key.post("/v1/profiles/care/versions", {"base_model": parts.model})
    before = revision(any_api)
    assert error_of(move(key, 1, if_version=1), 409)["code"] == "version_conflict"
    assert move(key, 1, if_version=0).json()["version"] == 1
    assert error_of(move(key, 2, if_version=0), 409)["code"] == "version_conflict"
    assert move(key, 2, if_version=1).status_code == 200
    assert move(key, 3).status_code == 200
    assert move(key, 1, alias="canary").status_code == 200
    assert revision(any_api) == before + 4  # one per successful move
    assert key.get("/v1/profiles/care").json()["aliases"] == {"live": 3, "canary": 1}
    for version in (4, 2**31, 2**62):
        error = error_of(move(key, version), 404)
        assert (error["code"], error["param"]) == ("not_found", "version")
    for version in (0, -1, "1", 1.5, True, None):
        error_of(key.request("PUT", "/v1/profiles/care/aliases/live", json={"version": version}), 422)
    error_of(move(key, 1, alias="Not-A-Name"), 422)
    error_of(move(key, 1, alias="a%00b"), 422)


@pytest.mark.bad_input(64)
@pytest.mark.parametrize("exists", [False, True], ids=["new alias", "old alias"])
def test_of_racing_alias_moves_one_wins(any_api: Api, exists: bool) -> None:
    key = any_api.tenant("acme")
    parts = Parts(any_api, key)
    for _ in range(9):
        key.post("/v1/profiles/care/versions", {"base_model": parts.model})
    if exists:
        move(key, 9)

    caller = Caller(key.tenant_id, "0123456789abcdef", frozenset(), TenantLimits())

    def compete(version: int) -> int | None:
        request = AliasMoveRequest(version=version, if_version=9 if exists else 0)
        try:
            with any_api.resources.writers.begin() as session:
                return aliases.move_alias(session, caller, "care", "live", request).version
        except VersionConflict:
            return None

    with ThreadPoolExecutor(8) as threads:
        winners = [version for version in threads.map(compete, range(1, 9)) if version is not None]
    assert [key.get("/v1/profiles/care").json()["aliases"]["live"]] == winners


class Evaluated:
    """A profile of two versions with a gate on ``live``; it publishes evaluations."""

    def __init__(self, api: Api) -> None:
        self.api, self.key = api, api.tenant("acme")
        self.parts = Parts(api, self.key)
        for weight in (2.0, 4.0):
            body = self.parts.body(guidance={"guidance_weight": weight, "safe_set_delta": 3.0})
            assert self.key.post("/v1/profiles/care/versions", body).status_code == 201
        self.gate()

    def gate(self, **more: Any) -> None:
        rules = [{"metric": "asr_high", "at_most": 0.05}, {"metric": "mip", "at_least": 0.2}]
        assert self.key.request("PUT", f"{ALIAS}/gate", json={"rules": rules, **more}).status_code == 200

    def report(
        self, metrics: dict[str, Any], weight: float = 2.0, spec: dict[str, Any] | None = None, **subject: Any
    ) -> str:
        described = {
            "model_digest": digest("base"),
            "harm_vector": self.parts.vector.digest,
            "harm_scale": 1.5,
            "arm": self.parts.arm.digest,
            "arm_backbone": None,
            "sda": None,
            **subject,
        }
        guidance = {"guidance_weight": weight, "safe_set_delta": 3.0}
        metadata = ReportMetadata(subject=described, metrics=metrics)
        return self.api.publish(self.key.tenant_id, metadata, spec={"guidance": guidance, **(spec or {})}).id

    def version(self, body: dict[str, Any]) -> int:
        answer = self.key.post("/v1/profiles/care/versions", body)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["version"])

    def refusal(self, version: int = 1) -> str:
        error = error_of(move(self.key, version), 409)
        assert (error["code"], error["param"]) == ("gate_not_passed", "version")
        return error["message"]


@pytest.mark.bad_input(47, 64)
def test_a_gated_alias_moves_only_to_versions_that_passed(any_api: Api) -> None:
    world = Evaluated(any_api)
    assert "no evaluation of it" in world.refusal()
    world.report({"asr_high": 0.4, "mip": 0.3})
    assert "asr_high is 0.4" in world.refusal()
    good = world.report({"asr_high": 0.01, "mip": 0.3})
    assert "no evaluation of it" in world.refusal(2)  # the same parts under other guidance
    assert move(world.key, 1).status_code == 200
    assert world.key.get(f"{ALIAS}/history").json()["data"][0]["reports"] == [good]
    split = {"version": 1, "canary": {"version": 2, "weight": 0.1}}
    assert error_of(world.key.request("PUT", ALIAS, json=split), 409)["code"] == "gate_not_passed"
    world.report({"asr_high": 0.01, "mip": 0.3}, weight=4.0)
    assert world.key.request("PUT", ALIAS, json=split).status_code == 200
    world.report({"asr_high": 0.5})  # the later value counts; the other metric stays
    assert "asr_high is 0.5" in world.refusal()
    assert world.key.request("PUT", "/v1/profiles/care/aliases/trial", json={"version": 1}).status_code == 200
    assert world.key.request("DELETE", f"{ALIAS}/gate").status_code == 204
    error_of(world.key.get(f"{ALIAS}/gate"), 404)
    assert move(world.key, 1).status_code == 200


@pytest.mark.parametrize(
    "subject",
    [{"model_digest": digest("other")}, {"harm_vector": None}, {"harm_scale": 1.0}, {"arm": None}],
    ids=lambda subject: next(iter(subject)),
)
def test_reports_on_something_else_do_not_count(api: Api, subject: dict[str, Any]) -> None:
    world = Evaluated(api)
    world.report({"asr_high": 0.0, "mip": 0.9}, **subject)
    assert "no evaluation of it" in world.refusal()


def test_another_tenants_report_does_not_count(api: Api) -> None:
    world = Evaluated(api)
    world.key, mine = api.tenant("bolt"), world.key
    world.report({"asr_high": 0.0, "mip": 0.9})
    world.key = mine
    assert "no evaluation of it" in world.refusal()


def test_a_gate_may_pin_the_data(api: Api) -> None:
    world = Evaluated(api)
    easy, hard = (world.key.dataset("prompt", [{"prompt": text}]) for text in ("how are you", "how do i zorble"))
    world.gate(datasets={"harmful_prompts": hard})
    world.report({"asr_high": 0.0, "mip": 0.9}, spec={"harmful_prompts": easy})
    assert "no evaluation of it" in world.refusal()
    world.report({"asr_high": 0.0, "mip": 0.9}, spec={"harmful_prompts": hard})
    assert move(world.key, 1).status_code == 200


@pytest.mark.parametrize("value", [None, "good", [0.0], True])
def test_a_metric_that_is_no_number_passes_no_gate(api: Api, value: Any) -> None:
    world = Evaluated(api)
    world.report({"asr_high": value, "mip": 0.9})
    assert "asr_high" in world.refusal()


STEERING = SdaSteering(instruction="Be kind.", strength=2.0).model_dump(mode="json")
GOOD = {"asr_high": 0.0, "mip": 0.9}


def test_a_gate_needs_a_report_under_the_versions_instruction(api: Api) -> None:
    world = Evaluated(api)
    bounds = {"max_strength": 4.0, "own_instruction": False}
    steered = {"guidance": {"guidance_weight": 2.0, "safe_set_delta": 3.0}, "sda": {**STEERING, "bounds": bounds}}
    version = world.version(world.parts.body(**steered))
    for other in ({"instruction": "Be rude."}, {"strength": 1.0}, {"adaptive_temperature": None}):
        world.report(GOOD, sda=STEERING | other)
        assert "no evaluation of it" in world.refusal(version)
    assert "no evaluation of it" in world.refusal(1)  # the same parts without an instruction
    world.report(GOOD)
    world.report(GOOD, weight=4.0, sda=STEERING)
    assert "no evaluation of it" in world.refusal(version)
    world.report(GOOD, sda=STEERING)
    assert move(world.key, version).status_code == 200


@pytest.mark.parametrize("stage", STAGE_EXAMPLES)
def test_a_gate_needs_a_report_under_each_stage_of_the_version(api: Api, stage: str) -> None:
    world = Evaluated(api)
    guidance = {"guidance_weight": 2.0, "safe_set_delta": 3.0}
    staged = world.version(world.parts.body(guidance=guidance, **{stage: STAGE_EXAMPLES[stage]}))
    world.report(GOOD)
    assert "no evaluation of it" in world.refusal(staged)
    assert move(world.key, 1).status_code == 200
    world.report(GOOD, **{stage: as_evaluated(stage)})
    assert move(world.key, staged, if_version=1).status_code == 200


@pytest.mark.parametrize("stage", STAGE_EXAMPLES)
def test_a_report_under_a_stage_that_the_version_lacks_does_not_count(api: Api, stage: str) -> None:
    world = Evaluated(api)
    world.report(GOOD, **{stage: as_evaluated(stage)})
    assert "no evaluation of it" in world.refusal(1)


def test_an_instruction_without_an_arm_keeps_to_the_safe_set_alone(api: Api) -> None:
    world = Evaluated(api)
    body = {"base_model": world.parts.model, "guidance": {"safe_set_delta": 2.0}, "sda": STEERING}
    version, plain = world.version(body), {"harm_vector": None, "arm": None, "sda": STEERING}
    world.report(GOOD, **plain)
    assert "no evaluation of it" in world.refusal(version)
    world.report(GOOD, spec={"guidance": {"guidance_weight": 3.0, "safe_set_delta": 2.0}}, **plain)
    assert move(world.key, version).status_code == 200


def test_a_gate_needs_a_report_on_a_separate_arms_model(api: Api) -> None:
    world = Evaluated(api)
    own = adapter("small").model_copy(update={"backbone_kind": "separate"})
    small = api.publish(world.key.tenant_id, checkpoint("small"), register_as="small")
    arm = api.publish(world.key.tenant_id, own, parents=[Parent(role="backbone_model", digest=small.digest)])
    guidance = {"guidance_weight": 2.0, "safe_set_delta": 3.0}
    version = world.version({"base_model": world.parts.model, "arm": arm.id, "guidance": guidance})
    for backbone in (None, digest("another")):
        world.report(GOOD, harm_vector=None, arm=arm.digest, arm_backbone=backbone)
        assert "no evaluation of it" in world.refusal(version)
    world.report(GOOD, harm_vector=None, arm=arm.digest, arm_backbone=small.digest)
    assert move(world.key, version).status_code == 200


def test_gates_that_say_nothing_are_refused(api: Api) -> None:
    key = api.tenant("acme")
    Parts(api, key)
    for body in ({"rules": []}, {"rules": [{"metric": "asr"}]}, {}):
        error_of(key.request("PUT", f"{ALIAS}/gate", json=body), 422)
    rules = [{"metric": "asr", "at_most": 1}]
    typo = {"rules": rules, "datasets": {"harmful_promts": "ds_hard"}}
    assert "harmful_prompts" in error_of(key.request("PUT", f"{ALIAS}/gate", json=typo), 422)["message"]


@pytest.mark.parametrize("metric", ["asr_hihg", "asr_worst_preference", "control_matrix", "A B", ""])
def test_a_gate_on_what_no_evaluation_reports_is_refused(api: Api, metric: str) -> None:
    key = api.tenant("acme")
    Parts(api, key)
    rules = [{"metric": "asr_high", "at_most": 0.05}, {"metric": metric, "at_most": 1}]
    error = error_of(key.request("PUT", f"{ALIAS}/gate", json={"rules": rules}), 422)
    assert (error["code"], error["param"]) == ("invalid_request", "rules.1.metric")
    assert "asr_high, " in error["message"]
    error_of(key.get(f"{ALIAS}/gate"), 404)


def test_a_gate_on_data_that_no_evaluation_could_use_is_refused(any_api: Api) -> None:
    key, other = any_api.tenant("acme"), any_api.tenant("bolt")
    Parts(any_api, key)
    prompts, theirs = (owner.dataset("prompt", [{"prompt": "how do i zorble"}]) for owner in (key, other))
    pairs = key.dataset("prompt_completion", [{"prompt": "a", "completion": "b"}])
    model_file = key.upload(b"weights", purpose="model").json()["id"]
    harmful_file = key.upload(b'{"prompt": "how do i zorble"}\n', harmful="true").json()["id"]

    def answer(**datasets: str) -> Any:
        body = {"rules": [{"metric": "asr", "at_most": 0.1}], "datasets": datasets}
        return key.request("PUT", f"{ALIAS}/gate", json=body)

    for role, id, status, code in (
        ("harmful_prompts", "ds_none", 404, "not_found"),
        ("harmful_prompts", theirs, 404, "not_found"),
        ("harmful_prompts", model_file, 422, "wrong_kind"),
        ("lexicon", prompts, 422, "wrong_kind"),
        ("benign_pairs", prompts, 422, "wrong_kind"),
        ("prompts", harmful_file, 422, "wrong_kind"),
    ):
        error = error_of(answer(**{role: id}), status)
        assert (error["code"], error["param"]) == (code, f"datasets.{role}"), (role, id)
    error_of(key.get(f"{ALIAS}/gate"), 404)
    kept = {"harmful_prompts": harmful_file, "benign_pairs": pairs, "prompts": prompts}
    assert answer(**kept).json()["datasets"] == kept
