"""The main job on the whole platform, driven only through REST and the stock openai client.

The same test runs on the embedded parts (SQLite, a folder) and on PostgreSQL with an S3 server over HTTP.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from armature.client import APIStatusError, Client
from armature_cli.local_platform.embedded import EmbeddedPlatform, Options
from tests.support import main_job
from tests.support.servers import PostgresServer, RedisServer, S3Server
from tests.support.tiny_models import CHAT_TEMPLATE, save_tiny_checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(params=["sqlite_and_folder", "postgres_and_s3"])
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedPlatform]:
    environment = {}
    if request.param == "postgres_and_s3":
        postgres: PostgresServer = request.getfixturevalue("postgres_server")
        broker: RedisServer = request.getfixturevalue("redis_server")
        s3: S3Server = request.getfixturevalue("s3_server")
        store = s3.settings()
        url = request.getfixturevalue("postgres_url")
        environment = {
            "ARMATURE_DATABASE__URL": url,
            "ARMATURE_REDIS__URL": broker.url,
            "ARMATURE_STORE__KIND": "s3",
            "ARMATURE_STORE__ENDPOINT": store.endpoint,
            "ARMATURE_STORE__BUCKET": store.bucket,
            "ARMATURE_STORE__ACCESS_KEY": store.access_key,
            "ARMATURE_STORE__SECRET_KEY": store.secret_key.get_secret_value(),
            "ARMATURE_STORE__SECURE": "false",
        }
        assert postgres.port
    with EmbeddedPlatform(Options(tmp_path / "data", 0, 0, 0, environment)) as running:
        yield running


def test_main_job(platform: EmbeddedPlatform, tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model", chat_template=CHAT_TEMPLATE)
    with Client(platform.api_url, platform.admin_key) as admin:
        built = main_job.build(admin, model, "tiny")
        check_report(admin, built)
        check_sweep(admin, built)
        with (
            main_job.join_team(admin, platform, "care-line") as care,
            main_job.join_team(admin, platform, "help-desk") as desk,
        ):
            main_job.go_live(care.client, built, "answers", {"empathy": 1.0})
            main_job.go_live(desk.client, built, "answers", {"helpfulness": 1.0})
            check_foreign_ids(care, desk)
            with stock_client(platform, care.token) as mine, stock_client(platform, desk.token) as theirs:
                check_generation(mine, theirs)
                check_revocation(admin, desk.token, theirs)


def check_report(admin: Client, built: main_job.Built) -> None:
    metrics = built.report.metadata.metrics
    assert {"asr", "nll"} <= set(metrics)
    assert admin.artifacts.content(built.report.id, "report.json").startswith(b"{")
    with pytest.raises(APIStatusError) as refused:
        admin.artifacts.content(built.report.id, "../../../armature.db")
    assert refused.value.status == 404


def check_sweep(admin: Client, built: main_job.Built) -> None:
    """Its artifacts, out of the store: every point in the report, the figure, and the knee as a vector to use."""
    report, vector = (main_job.output(built.sweep, name) for name in ("report", "harm_vector"))
    content = json.loads(admin.artifacts.content(report.id, "report.json"))
    assert [(point["scale"], point["control"]) for point in content["points"]] == [
        (0.0, None),
        *((scale, None) for scale in (0.5, 1.0)),
        *((0.5, control) for control in ("random", "permuted", "random_sign")),
    ]
    assert report.metadata.metrics == content["metrics"]
    assert content["metrics"]["recommended_scale"] == 0.5
    assert vector.metadata.kept == content["metrics"]["best"]["kept"]
    assert admin.artifacts.content(report.id, "sweep.png").startswith(b"\x89PNG")
    assert "<!-- knee -->" in admin.artifacts.content(report.id, "sweep.svg").decode()


def check_foreign_ids(care: main_job.Team, desk: main_job.Team) -> None:
    """What one tenant made alone does not exist for another."""
    private = care.client.datasets.upload("private", format="prompt", rows=[{"prompt": "hello"}])
    with pytest.raises(APIStatusError) as foreign:
        desk.client.datasets.retrieve(private.id)
    with pytest.raises(APIStatusError) as missing:
        desk.client.datasets.retrieve("ds_0000")
    assert foreign.value.status == missing.value.status == 404
    with pytest.raises(APIStatusError) as forbidden:
        desk.client.tenants.ensure("more")
    assert forbidden.value.status == 403


def stock_client(platform: EmbeddedPlatform, token: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{platform.decoder_url}/v1", api_key=token, max_retries=8, timeout=60)


def wait_for_models(client: openai.OpenAI, seconds: float = 30.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if models := [model.id for model in client.models.list()]:
                return models
        except openai.AuthenticationError:  # the decoder has not read the key yet
            pass
        time.sleep(0.2)
    raise AssertionError("no model appeared")


def check_generation(mine: openai.OpenAI, theirs: openai.OpenAI) -> None:
    """List, chat, stream, and two requests side by side with different preferences."""
    assert "answers" in wait_for_models(mine)
    assert "answers" in wait_for_models(theirs)

    def ask(client: openai.OpenAI, preference: dict[str, float] | None = None) -> openai.types.chat.ChatCompletion:
        return client.chat.completions.create(
            model="answers",
            messages=[{"role": "user", "content": "my gate is old"}],
            max_tokens=12,
            temperature=1.0,
            seed=7,
            extra_body={} if preference is None else {"preference": preference},
        )

    answer = ask(mine)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra is not None
    assert answer.model_extra["alignment"]["preference"]["empathy"] == 1.0
    stream = mine.chat.completions.create(
        model="answers",
        messages=[{"role": "user", "content": "my gate is old"}],
        max_tokens=12,
        temperature=1.0,
        seed=7,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens

    preferences = [{"empathy": 1.0}, {"truthfulness": 0.5, "helpfulness": 0.5}]
    alone = [ask(mine, preference).choices[0].message.content for preference in preferences]
    with ThreadPoolExecutor() as pool:
        together = [future.result() for future in [pool.submit(ask, mine, p) for p in preferences]]
    assert [answer.choices[0].message.content for answer in together] == alone
    own = ask(theirs).model_extra
    assert own is not None
    assert own["alignment"]["preference"]["helpfulness"] == 1.0
    with pytest.raises(openai.NotFoundError):
        mine.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.UnprocessableEntityError, match="unknown attribute"):
        ask(mine, {"charm": 1.0})


def check_revocation(admin: Client, token: str, client: openai.OpenAI) -> None:
    """A revoked key stops working within 5 seconds."""
    admin.keys.revoke(token.split("_")[1])
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            client.models.list()
        except openai.AuthenticationError:
            return
        time.sleep(0.2)
    raise AssertionError("the revoked key still works")
