"""Profiles: what a version freezes, which parts it refuses, and concurrent versions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from armature.contracts.artifacts import ArtifactRef, Parent
from armature.contracts.base import digest
from armature.contracts.profiles import ProfileManifest, ProfileVersionCreateRequest
from armature.db.models import Artifact, ProfileVersion
from armature_api.profiles import service
from tests.support.api import Api, Parts, adapter, checkpoint, error_of
from tests.support.stages import STAGE_EXAMPLES


def ref(artifact: Artifact) -> ArtifactRef:
    return ArtifactRef(digest=artifact.digest, manifest_key=artifact.manifest_key)


def manifest(api: Api, version: int = 1) -> ProfileManifest:
    with api.resources.readers() as session:
        row = session.scalars(select(ProfileVersion).where(ProfileVersion.version == version)).one()
        stored = ProfileManifest.model_validate(row.manifest)
        assert stored.digest() == row.digest
        return stored


def test_a_version_freezes_digests(any_api: Api) -> None:
    key = any_api.tenant("acme")
    parts = Parts(any_api, key)
    guidance = {
        "preference": {"empathy": 3.0},
        "guidance_weight": 2.0,
        "safe_set_delta": None,
        "safe_set_mode": "soft",
    }
    answer = key.post("/v1/profiles/care/versions", parts.body(guidance=guidance))
    assert answer.status_code == 201
    view = answer.json()
    assert (view["profile"], view["version"], view["arm"], view["guidance"]) == ("care", 1, parts.arm.id, guidance)
    assert key.get(answer.headers["location"]).json() == view
    frozen = manifest(any_api)
    assert (frozen.base, frozen.harm_vector, frozen.arm) == (ref(parts.base), ref(parts.vector), ref(parts.arm))
    assert (frozen.harm_scale, frozen.attributes, frozen.loss_form) == (1.5, ["empathy", "truthfulness"], "reference")
    assert frozen.backbone.harm_vector_digest == parts.vector.digest
    assert view["digest"] == frozen.digest()


SETTINGS: dict[str, Any] = {
    "guidance": {
        "preference": {"empathy": 3.0},
        "guidance_weight": 2.0,
        "safe_set_delta": 4.0,
        "safe_set_mode": "strict",
    },
    "bounds": {"max_guidance_weight": 8.0, "max_safe_set_delta": 9.0},
    "chat": {"turns": "alternating"},
    **STAGE_EXAMPLES,
}
"""Other than the default, every field that a version's request and its manifest share and that is not a part."""


def test_every_setting_of_a_version_arrives_in_its_manifest(api: Api) -> None:
    shared = ProfileVersionCreateRequest.model_fields.keys() & ProfileManifest.model_fields.keys()
    assert SETTINGS.keys() == shared - {"harm_vector", "harm_scale", "arm"}
    key = api.tenant("acme")
    view = key.post("/v1/profiles/care/versions", Parts(api, key).body(**SETTINGS)).json()
    frozen = manifest(api).model_dump(mode="json")
    for name, wanted in SETTINGS.items():
        assert wanted == {field: frozen[name][field] for field in wanted}, name
        assert view[name] == frozen[name], name


def test_a_version_without_an_arm_is_unguided(api: Api) -> None:
    key = api.tenant("acme")
    parts = Parts(api, key)
    assert key.post("/v1/profiles/care/versions", {"base_model": parts.model}).status_code == 201
    frozen = manifest(api)
    assert (frozen.harm_vector, frozen.harm_scale, frozen.arm, frozen.attributes) == (None, 0.0, None, [])
    assert frozen.guidance.guidance_weight == 0
    assert frozen.backbone.model_digest == digest("base")
    for guidance, param in (
        ({"preference": {"empathy": 1}}, "preference"),
        ({"guidance_weight": 2}, "guidance_weight"),
    ):
        body = {"base_model": parts.model, "guidance": guidance}
        assert error_of(key.post("/v1/profiles/care/versions", body), 422)["param"] == f"guidance.{param}"
    still_base = {"base_model": parts.model, "guidance": {"guidance_weight": 0}}
    assert key.post("/v1/profiles/care/versions", still_base).json()["version"] == 2


def test_a_version_may_guide_by_an_instruction(api: Api) -> None:
    key = api.tenant("acme")
    parts = Parts(api, key)
    sda = {"instruction": "Be kind.", "strength": 2.0, "bounds": {"max_strength": 4.0, "own_instruction": False}}
    view = key.post("/v1/profiles/care/versions", parts.body(sda=sda)).json()
    steered = manifest(api, view["version"])
    assert steered.sda is not None
    assert view["sda"] == steered.sda.model_dump(mode="json")
    assert (view["sda"]["instruction"], view["sda"]["adaptive_temperature"]["least"]) == ("Be kind.", 0.0)
    plain = key.post("/v1/profiles/care/versions", parts.body()).json()
    assert plain["sda"] is None
    assert plain["digest"] != view["digest"]
    assert manifest(api, plain["version"]).bundle_digest() == steered.bundle_digest()  # they share the loaded model
    cases = [
        ({"instruction": ""}, "invalid_request", "sda.instruction"),
        ({"instruction": "x" * 4097}, "invalid_request", "sda.instruction"),
        ({"strength": 2.0}, "missing_field", "sda.instruction"),
        ({**sda, "strength": 33}, "invalid_request", "sda.strength"),
        ({**sda, "strength": 5.0}, "out_of_bounds", "sda.strength"),
        ({**sda, "adaptive_temperature": {"sigma": 0}}, "invalid_request", "sda.adaptive_temperature.sigma"),
        ({**sda, "kappa": 2}, "unknown_field", "sda.kappa"),
    ]
    for body, code, param in cases:
        error = error_of(key.post("/v1/profiles/care/versions", parts.body(sda=body)), 422)
        assert (error["code"], error["param"]) == (code, param), body


def test_a_separate_arm_needs_a_base_with_the_same_tokens(api: Api) -> None:
    key, rival = api.tenant("acme"), api.tenant("rival")
    parts = Parts(api, key)

    def arm_on(model: Artifact, name: str) -> str:
        own = adapter(name, tokenizer="its template").model_copy(update={"backbone_kind": "separate"})
        made_from = [Parent(role="backbone_model", digest=model.digest), Parent(role="pairs", digest=digest("pairs"))]
        return api.publish(key.tenant_id, own, parents=made_from).id

    def create(base: str, arm: str, **more: Any) -> Any:
        return key.post("/v1/profiles/care/versions", {"base_model": base, "arm": arm, **more})

    small, *_ = (
        api.publish(key.tenant_id, checkpoint(name, template, words), register_as=name)
        for name, template, words in (
            ("small", "its template", "words"),
            ("large", "tokenizer", "words"),
            ("french", "tokenizer", "mots"),
        )
    )
    arm = arm_on(small, "small")
    assert create("large", arm).status_code == 201
    frozen = manifest(api, 1)
    assert (frozen.arm_backbone, frozen.backbone.model_digest) == (ref(small), digest("large"))
    assert create(parts.model, arm, harm_vector=parts.vector.id).status_code == 201  # an unknown vocabulary
    assert manifest(api, 2).arm_backbone == ref(small)
    assert create("small", arm).status_code == 201
    assert manifest(api, 3).arm_backbone is None  # here the ARM is on the base
    refused = error_of(create("french", arm), 409)
    assert (refused["code"], refused["param"]) == ("tokenizer_mismatch", "arm")
    hidden = api.publish(rival.tenant_id, checkpoint("hidden", vocabulary="words"))
    refused = error_of(create("large", arm_on(hidden, "hidden")), 404)
    assert (refused["code"], refused["param"]) == ("not_found", "arm")


@pytest.mark.bad_input(4, 27, 28)
def test_versions_whose_parts_do_not_fit_are_refused(api: Api) -> None:
    key = api.tenant("acme")
    parts = Parts(api, key)
    other_arm = api.publish(key.tenant_id, adapter("another base")).id
    small = adapter("a small model", tokenizer="its files").model_copy(update={"backbone_kind": "separate"})
    own_backbone = api.publish(key.tenant_id, small).id
    retokenised = api.publish(key.tenant_id, adapter(tokenizer="another", harm_vector=parts.vector.digest)).id
    foreign = api.base_model(api.platform.tenant_id, "private")[0]
    cases = [
        (parts.body(arm=other_arm), 409, "adapter_base_mismatch", "arm"),
        (parts.body(arm=own_backbone), 404, "not_found", "arm"),
        (parts.body(arm=retokenised), 409, "tokenizer_mismatch", "arm"),
        (parts.body(harm_scale=1.0), 409, "adapter_base_mismatch", "arm"),
        (parts.body(harm_vector=None), 409, "adapter_base_mismatch", "arm"),
        (parts.body(arm=parts.vector.id), 422, "wrong_kind", "arm"),
        (parts.body(harm_vector=parts.arm.id), 422, "wrong_kind", "harm_vector"),
        (parts.body(base_model=foreign), 404, "not_found", "base_model"),
        (parts.body(base_model=parts.base.id), 404, "not_found", "base_model"),
        (parts.body(guidance={"preference": {"wit": 1}}), 422, "unknown_attribute", "guidance.preference.wit"),
        (parts.body(guidance={"preference": {"empathy": 0}}), 422, "zero_preference", "guidance.preference"),
        (parts.body(guidance={"preference": {"empathy": -1}}), 422, "invalid_request", "guidance.preference.empathy"),
        (parts.body(guidance={"guidance_weight": "2"}), 422, "invalid_request", "guidance.guidance_weight"),
        (parts.body(guidance={"guidance_weight": True}), 422, "invalid_request", "guidance.guidance_weight"),
        (parts.body(guidance={"beta": 1}), 422, "unknown_field", "guidance.beta"),
        (parts.body(harm_scale=-1), 422, "invalid_request", "harm_scale"),
        (parts.body(tenant_id="x"), 422, "unknown_field", "tenant_id"),
    ]
    for body, status, code, param in cases:
        error = error_of(key.post("/v1/profiles/care/versions", body), status)
        assert (error["code"], error["param"]) == (code, param), body
    assert key.get("/v1/profiles/care").json()["latest_version"] == 0


def test_names_are_taken_once_per_tenant(any_api: Api) -> None:
    for tenant in ("acme", "bolt"):
        key = any_api.tenant(tenant)
        assert key.post("/v1/profiles", {"name": "care"}).status_code == 201
        error = error_of(key.post("/v1/profiles", {"name": "care"}), 409)
        assert (error["code"], error["param"]) == ("name_taken", "name")
        assert len(key.get("/v1/profiles").json()["data"]) == 1


def test_versions_are_listed_newest_first(api: Api) -> None:
    key = api.tenant("acme")
    parts = Parts(api, key)
    for _ in range(5):
        key.post("/v1/profiles/care/versions", {"base_model": parts.model})
    first = key.get("/v1/profiles/care/versions?limit=3").json()
    second = key.get(f"/v1/profiles/care/versions?limit=3&after={first['last_id']}").json()
    assert [[item["version"] for item in page["data"]] for page in (first, second)] == [[5, 4, 3], [2, 1]]
    assert (first["has_more"], second["has_more"]) == (True, False)
    for number in ("0", "6", str(2**40)):
        error_of(key.get(f"/v1/profiles/care/versions/{number}"), 404)


def test_racing_versions_are_numbered_without_gaps(any_api: Api) -> None:
    key = any_api.tenant("acme")
    request = ProfileVersionCreateRequest(base_model=Parts(any_api, key).model)

    def create(_: int) -> int:
        with any_api.resources.writers.begin() as session:
            return service.create_version(session, key.tenant_id, "care", request).version

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(create, range(16))) == list(range(1, 17))


def test_bounds_hold_for_the_version_itself(api: Api) -> None:
    key = api.tenant("acme")
    parts = Parts(api, key)
    bounds = {"max_guidance_weight": 4.0, "max_safe_set_delta": 3.0}
    view = key.post("/v1/profiles/care/versions", parts.body(bounds=bounds, guidance={"guidance_weight": 4.0})).json()
    assert view["bounds"] == bounds
    assert manifest(api).bounds.max_guidance_weight == 4
    for guidance, param in (
        ({"guidance_weight": 4.5}, "guidance_weight"),
        ({"safe_set_delta": 3.5}, "safe_set_delta"),
        ({"safe_set_delta": None}, "safe_set_delta"),
    ):
        error = error_of(key.post("/v1/profiles/care/versions", parts.body(bounds=bounds, guidance=guidance)), 422)
        assert (error["code"], error["param"]) == ("out_of_bounds", f"guidance.{param}")


def test_how_dialogues_are_written_is_part_of_a_version_and_not_of_its_bundle(any_api: Api) -> None:
    key = any_api.tenant("acme")
    parts = Parts(any_api, key)
    chat = {"template_kwargs": {"enable_thinking": False}, "turns": "alternating", "date": "2026-02-03"}
    for body in (parts.body(), parts.body(chat=chat)):
        assert key.post("/v1/profiles/care/versions", body).status_code == 201
    assert key.get("/v1/profiles/care/versions/2").json()["chat"] == chat
    plain, told = manifest(any_api, 1), manifest(any_api, 2)
    assert plain.chat is None
    assert told.chat is not None
    assert told.chat.model_dump() == chat
    assert plain.digest() != told.digest()
    assert plain.bundle_digest() == told.bundle_digest()
    wrong = key.post("/v1/profiles/care/versions", parts.body(chat={"template_kwargs": {"messages": 1}}))
    assert error_of(wrong, 422)["param"] == "chat.template_kwargs.messages"
