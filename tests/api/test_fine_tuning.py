"""The stock ``openai`` client against the API, given nothing but ``base_url`` and a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from armature.db import jobs as protocol
from armature.db.models import Job
from armature.settings import DatabaseSettings
from tests.support.api import Api, run_api

ROWS = [{"prompt": "a", "responses": ["b", "c"], "labels": {"empathy": n % 2, "humour": 0}} for n in range(20)]
FILE = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.fixture
def api(sqlite_settings: DatabaseSettings, tmp_path: Path) -> Iterator[Api]:
    with run_api(sqlite_settings, tmp_path) as running:
        yield running


@pytest.fixture
def client(api: Api) -> OpenAI:
    """The stock client; its requests go through the app's test transport instead of a socket."""
    base_url, key = "http://testserver/v1", api.platform.token
    return OpenAI(base_url=base_url, api_key=key, http_client=api.client, max_retries=0)


@pytest.fixture
def base(api: Api) -> str:
    return api.base_model(api.platform.tenant_id)[0]


def upload(client: OpenAI) -> str:
    return client.files.create(file=("pairs.jsonl", FILE), purpose="fine-tune").id


def test_a_job_from_its_file_to_its_log(api: Api, client: OpenAI, base: str) -> None:
    file = upload(client)
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=file,
        hyperparameters={"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 0.5},
        seed=7,
        suffix="care",
        metadata={"ticket": "A-12"},
    )
    assert (job.object, job.status, job.model, job.training_file) == ("fine_tuning.job", "queued", base, file)
    assert (job.seed, job.metadata) == (7, {"ticket": "A-12", "suffix": "care"})
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (4, 8)
    assert job.hyperparameters.learning_rate_multiplier == pytest.approx(0.5)
    spec = api.platform.get(f"/v1/jobs/{job.id}").json()["spec"]
    assert (spec["kind"], spec["training"]["steps"], spec["training"]["batch_size"]) == ("arm.train", 10, 8)
    assert set(spec["attributes"]) == {"empathy", "humour"}
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert [listed.id for listed in client.fine_tuning.jobs.list(metadata={"ticket": "A-12"})] == [job.id]
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    events = client.fine_tuning.jobs.list_events(job.id, limit=2)
    assert [event.message for event in events] == ["cancelled", "resumed", "paused", "queued"]  # over two pages


def test_a_checkpoint_and_a_running_cancellation(api: Api, client: OpenAI, base: str) -> None:
    job = client.fine_tuning.jobs.create(model=base, training_file=upload(client))
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []
    with api.resources.writers.begin() as session:
        assert protocol.claim(session, job.id, "worker", 60)
        session.get_one(Job, job.id).checkpoint = {"step": 50, "prefix": "p/", "files": [], "saved_at": 11}
    (saved,) = client.fine_tuning.jobs.checkpoints.list(job.id)
    assert (saved.fine_tuning_job_id, saved.step_number, saved.created_at) == (job.id, 50, 11)
    assert client.fine_tuning.jobs.cancel(job.id).status == "running"  # OpenAI has no status like cancelling
    assert api.platform.get(f"/v1/jobs/{job.id}").json()["state"] == "cancelling"


def test_other_kinds_of_jobs_are_not_there(api: Api, client: OpenAI, base: str) -> None:
    other = api.platform.get("/v1/jobs").json()["data"][0]["id"]
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(other)
    assert list(client.fine_tuning.jobs.list()) == []


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"method": {"type": "supervised"}}, "method.type"),
        ({"method": {"type": "arm", "arm": {"attributes": ["empathy"], "no_such": 1}}}, "method.arm.no_such"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"training_file": "file_unknown"}, "training_file"),
    ],
)
def test_bad_requests_are_refused_by_field(client: OpenAI, base: str, arguments: dict, param: str) -> None:
    given = {"model": base, "training_file": upload(client), **arguments}
    with pytest.raises(openai.APIStatusError) as refused:
        client.fine_tuning.jobs.create(**given)
    assert refused.value.status_code in (404, 422)
    assert (refused.value.body or {})["param"] == param  # type: ignore[index, call-overload]


def test_models_are_listed_and_retrieved(api: Api, client: OpenAI, base: str) -> None:
    assert api.platform.post("/v1/profiles", {"name": "care"}).status_code == 201
    version = {"base_model": base}
    assert api.platform.post("/v1/profiles/care/versions", version).status_code == 201
    for alias in ("live", "next"):
        moved = api.platform.request("PUT", f"/v1/profiles/care/aliases/{alias}", json={"version": 1})
        assert moved.status_code == 200, moved.text
    models = {model.id: model for model in client.models.list()}
    assert models.keys() == {base, "care", "care@next"}
    assert models["care"].model_extra["parent"] == models[base].model_extra["root"]  # type: ignore[index]
    assert client.models.retrieve("care@next").id == "care@next"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("unknown")


@pytest.mark.parametrize("training", [5, "fast", [1], True])
def test_a_training_that_is_no_object_is_named(client: OpenAI, base: str, training: object) -> None:
    method = {"type": "arm", "arm": {"training": training}}
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.fine_tuning.jobs.create(model=base, training_file=upload(client), extra_body={"method": method})
    assert refused.value.param == "method.arm.training"
