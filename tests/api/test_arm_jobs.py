"""Submitting jobs on ARMs: backbones and held-out pairs are resolved within the tenant or refused."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from armature.contracts.artifacts import Parent
from armature.contracts.specs import parse_inputs
from armature.db.models import Artifact, Job
from tests.support.api import Api, adapter, checkpoint, error_of, task_vector

PREFERENCE = {"prompt": "a", "responses": ["b", "c"], "labels": {"empathy": 1}}


def test_a_separate_backbone_and_held_out_pairs_are_inputs(api: Api) -> None:
    key = api.tenant("acme")
    model, small = (api.base_model(key.tenant_id, name)[0] for name in ("large", "small"))
    foreign, _ = api.base_model(api.tenant("rival").tenant_id, "secret")
    vector = api.publish(key.tenant_id, task_vector("large")).id
    pairs = key.dataset("preference", [PREFERENCE])
    spec: dict[str, Any] = {"kind": "arm.train", "base_model": model, "pairs": pairs, "attributes": ["empathy"]}
    own = {**spec, "backbone": "separate", "backbone_model": small, "validation_pairs": pairs}
    assert key.post("/v1/jobs", {"spec": own}).status_code == 202
    with api.resources.readers() as session:
        (job,) = session.scalars(select(Job).where(Job.kind == "arm.train"))
    assert set(parse_inputs(job.inputs)) == {"base_model", "backbone_model", "pairs", "validation_pairs"}
    refused = error_of(key.post("/v1/jobs", {"spec": {**own, "backbone_model": foreign}}), 404)
    assert (refused["code"], refused["param"]) == ("not_found", "spec.backbone_model")
    for name, words in (("english", "words"), ("same", "words"), ("french", "mots")):
        api.publish(key.tenant_id, checkpoint(name, vocabulary=words), register_as=name)
    speaking = {**own, "base_model": "english"}
    for backbone in ("same", small):  # unknown vocabularies are left to the worker
        assert key.post("/v1/jobs", {"spec": {**speaking, "backbone_model": backbone}}).status_code == 202
    other = error_of(key.post("/v1/jobs", {"spec": {**speaking, "backbone_model": "french"}}), 409)
    assert (other["code"], other["param"]) == ("tokenizer_mismatch", "spec.backbone_model")
    missing = error_of(key.post("/v1/jobs", {"spec": {**spec, "backbone": "separate"}}), 422)
    assert (missing["code"], missing["param"]) == ("missing_field", "spec.backbone_model")
    for contradiction, param in (
        ({**spec, "backbone": "safe"}, "backbone"),
        ({**spec, "backbone_model": small}, "backbone_model"),
        ({**own, "harm_vector": vector}, "backbone"),
        ({**spec, "training": {"batch_size": 4, "micro_batch_size": 5}}, "training.micro_batch_size"),
        ({**spec, "training": {"steps": 10, "warmup_steps": 10}}, "training.warmup_steps"),
        ({**own, "validation": {"share": 0.1}}, "validation"),
    ):
        refused = error_of(key.post("/v1/jobs", {"spec": contradiction}), 422)
        assert (refused["code"], refused["param"]) == ("invalid_request", f"spec.{param}")


def test_an_evaluation_pins_the_model_that_a_separate_arm_is_on(api: Api) -> None:
    key, rival = api.tenant("acme"), api.tenant("rival")
    models = {
        name: api.publish(key.tenant_id, checkpoint(name, vocabulary=words), register_as=name)
        for name, words in (("large", "words"), ("small", "words"), ("french", "mots"))
    }
    hidden = api.publish(rival.tenant_id, checkpoint("hidden", vocabulary="words"))

    def arm_on(model: Artifact, name: str) -> str:
        own = adapter(name).model_copy(update={"backbone_kind": "separate"})
        return api.publish(key.tenant_id, own, parents=[Parent(role="backbone_model", digest=model.digest)]).id

    arm = arm_on(models["small"], "small")
    spec: dict[str, Any] = {
        "kind": "evaluation.run",
        "base_model": "large",
        "arm": arm,
        "lexicon": key.dataset("lexicon", [{"attributes": {"empathy": ["i see"]}}]),
        "prompts": key.dataset("prompt", [{"prompt": "hello"}]),
        "attributes": ["empathy"],
        "sda": {"instruction": "Be kind.", "strength": 2.0},
    }
    created = key.post("/v1/jobs", {"spec": spec}).json()
    assert {"role": "arm_backbone", "digest": models["small"].digest} in created["parents"]
    on_its_own = key.post("/v1/jobs", {"spec": {**spec, "base_model": "small"}}).json()
    assert "arm_backbone" not in {parent["role"] for parent in on_its_own["parents"]}
    for change, status, code, param in (
        ({"base_model": "french"}, 409, "tokenizer_mismatch", "arm"),
        ({"arm": arm_on(hidden, "hidden")}, 404, "not_found", "arm"),
        ({"attributes": ["wit"], "lexicon": spec["lexicon"]}, 422, "invalid_dataset", "attributes.0"),
        ({"sampling": {"max_tokens": 256}}, 400, "context_length_exceeded", "sampling.max_tokens"),
        ({"sda": {"instruction": ""}}, 422, "invalid_request", "sda.instruction"),
        ({"sda": {"instruction": "x", "strength": 33.0}}, 422, "invalid_request", "sda.strength"),
        ({"sda": {"instruction": "x", "bounds": {}}}, 422, "unknown_field", "sda.bounds"),
        ({"guidance": {"sda": {"instruction": "x"}}}, 422, "unknown_field", "guidance.sda"),
    ):
        refused = error_of(key.post("/v1/jobs", {"spec": {**spec, **change}}), status)
        assert (refused["code"], refused["param"]) == (code, f"spec.{param}"), change


def test_only_an_evaluation_takes_an_arm_on_another_model(api: Api) -> None:
    key = api.tenant("acme")
    model, _ = api.base_model(key.tenant_id, "large")
    small = api.publish(key.tenant_id, checkpoint("small"), register_as="small")
    own = adapter("small").model_copy(update={"backbone_kind": "separate"})
    arm = api.publish(key.tenant_id, own, parents=[Parent(role="backbone_model", digest=small.digest)]).id
    pairs = key.dataset("preference", [PREFERENCE])
    for spec in (
        {"kind": "arm.extend", "attribute": "empathy", "pairs": pairs},
        {"kind": "checkpoint.export", "harm_scale": 1.0, "preference": {"empathy": 1.0}},
    ):
        refused = error_of(key.post("/v1/jobs", {"spec": {**spec, "base_model": model, "arm": arm}}), 409)
        assert (refused["code"], refused["param"]) == ("adapter_base_mismatch", "spec.arm")
        assert "on a model of its own" in refused["message"]
