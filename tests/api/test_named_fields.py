"""An error about several fields together names the one to change, anywhere in the body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from armature.settings import DatabaseSettings
from tests.support.api import Api, error_of, run_api

ARM = {"kind": "arm.train", "base_model": "m", "pairs": "d", "attributes": ["empathy"]}
EXTEND = {"kind": "arm.extend", "base_model": "m", "arm": "a", "attribute": "wit", "pairs": "d"}
HARM = {"kind": "harm_vector.build", "base_model": "m", "harmful_pairs": "d"}
EVALUATION = {"kind": "evaluation.run", "base_model": "m", "lexicon": "d", "prompts": "d"}
STRICT = {"safe_set_mode": "strict", "safe_set_delta": None}


@pytest.fixture(scope="module")
def api(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("named-fields")
    (folder / "armature.db").write_bytes(sqlite_template.read_bytes())
    with run_api(DatabaseSettings(url=f"sqlite:///{folder}/armature.db"), folder) as running:
        yield running


@pytest.mark.parametrize(
    ("spec", "param"),
    [
        ({**ARM, "training": {"batch_size": 5, "processes": 2}}, "training.batch_size"),
        ({**ARM, "training": {"sharding": "fsdp"}}, "training.sharding"),
        ({**ARM, "training": {"batch_size": 4, "micro_batch_size": 8}}, "training.micro_batch_size"),
        ({**ARM, "preferences": {"vertices": 0.7, "centroid": 0.7}}, "preferences.centroid"),
        ({**EXTEND, "training": {"weight_decay": 0.1}}, "training.weight_decay"),
        ({**EXTEND, "training": {"batch_size": 4, "processes": 2}}, "training.processes"),
        ({**HARM, "training": {"offload": True, "method": "full"}}, "training.offload"),
        ({"kind": "checkpoint.export", "base_model": "m", "harm_vector": "v", "preference": {"wit": 1}}, "preference"),
        ({**EVALUATION, "guidance": STRICT}, "guidance.safe_set_mode"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_an_error_names_its_field_in_a_jobs_spec(api: Api, spec: dict[str, Any], param: str) -> None:
    error = error_of(api.platform.post("/v1/jobs", {"spec": spec}), 422)
    assert (error["code"], error["param"]) == ("invalid_request", f"spec.{param}"), error
    assert param not in error["message"]


def test_an_error_names_its_field_in_a_fine_tuning_method(api: Api) -> None:
    method = {"type": "arm", "arm": {"attributes": ["empathy"], "training": {"sharding": "fsdp"}}}
    body = {"model": "m", "training_file": "d", "method": method}
    assert error_of(api.platform.post("/v1/fine_tuning/jobs", body), 422)["param"] == "method.arm.training.sharding"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("aliases/live", {"version": 2, "canary": {"version": 2, "weight": 0.5}}, "canary.version"),
        ("aliases/live/gate", {"rules": [{"metric": "asr", "at_most": 1}, {"metric": "asr"}]}, "rules.1"),
    ],
)
def test_an_error_names_its_field_in_a_profile(api: Api, path: str, body: dict[str, Any], param: str) -> None:
    error = error_of(api.platform.request("PUT", f"/v1/profiles/care/{path}", json=body), 422)
    assert (error["code"], error["param"]) == ("invalid_request", param)


def test_an_error_names_its_field_in_a_versions_guidance(api: Api) -> None:
    body = {"base_model": "m", "guidance": STRICT}
    error = error_of(api.platform.post("/v1/profiles/care/versions", body), 422)
    assert error["param"] == "guidance.safe_set_mode"
