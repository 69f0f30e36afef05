"""Submitting arm.train: its backbone and its held-out pairs are inputs, resolved within the tenant and refused."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from armature.contracts.specs import parse_inputs
from armature.db.models import Job
from tests.support.api import Api, checkpoint, error_of, task_vector

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
    for backbone in ("same", small):  # what is known agrees; of what is not known, the worker decides
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
