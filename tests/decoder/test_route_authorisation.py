"""Every route of the decoder needs a key with the scope ``generate``, and serves its tenant's models alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import SecretStr

from armature.contracts.tenants import Scope
from armature.settings import HttpSettings, StoreSettings
from armature.storage.local import LocalArtifactStore
from armature_decoder.http.app import create_app
from armature_decoder.settings import DecoderServiceSettings, DecoderSettings
from tests.support.api import error_of
from tests.support.serving import PublishedBundle, ServedInstallation, publish_bundle

OPEN = {"/healthz", "/readyz", "/metrics", "/openapi.json"}
"""Routes that need no API key: health, the API's description, and metrics, which have a token of their own."""
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
BODIES = {"/v1/chat/completions": CHAT, "/v1/completions": {"prompt": "hi", "max_tokens": 1}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("authorisation")


@pytest.fixture(scope="module")
def installation(root: Path) -> ServedInstallation:
    store = LocalArtifactStore(root / "store")
    bundle: PublishedBundle = publish_bundle(store, root, seed=1)
    installation = ServedInstallation(store)
    for tenant in ("acme", "zen"):
        installation.add_tenant(tenant)
    installation.point("acme", "care", bundle.manifest)
    return installation


@pytest.fixture(scope="module")
def tokens(installation: ServedInstallation) -> dict[str, str]:
    others: list[Scope] = ["platform", "jobs:read", "jobs:write", "profiles:write", "harmful:write", "audit:read"]
    found = {
        "owner": installation.add_key("acme"),
        "stranger": installation.add_key("zen"),
        "no-scope": installation.add_key("acme", scopes=others),
    }
    installation.publish()
    return found


@pytest.fixture(scope="module")
def client(root: Path, tokens: dict[str, str]) -> Iterator[TestClient]:
    settings = DecoderServiceSettings(
        store=StoreSettings(path=root / "store"),
        http=HttpSettings(metrics_token=SecretStr("tests-scrape-with-this")),
        decoder=DecoderSettings(cache_dir=root / "cache", device="cpu", preload=False),
    )
    with TestClient(create_app(settings)) as running:
        yield running


def guarded(client: TestClient) -> list[tuple[str, str]]:
    found = [
        (method, context.path_format or "")
        for context in iter_route_contexts(client.app.routes)  # type: ignore[attr-defined]
        for method in context.methods or ()
    ]
    assert {path for _, path in found if not path.startswith("/v1/")} == OPEN
    assert len(found) > len(OPEN)
    return [(method, path) for method, path in found if path not in OPEN]


@pytest.mark.bad_input(60)
def test_every_route_needs_a_key_of_its_scope(client: TestClient, tokens: dict[str, str]) -> None:
    for method, template in guarded(client):
        path = re.sub(r"\{\w+\}", "care", template)
        assert error_of(client.request(method, path), 401)["code"] == "invalid_api_key", (method, path)
        headers = {"Authorization": f"Bearer {tokens['no-scope']}"}
        assert error_of(client.request(method, path, headers=headers), 403)["code"] == "missing_scope", (method, path)


@pytest.mark.bad_input(26)
def test_a_foreign_model_is_not_found(client: TestClient, tokens: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {tokens['stranger']}"}
    for method, template in guarded(client):
        if template == "/v1/models":
            assert client.get(template, headers=headers).json()["data"] == []
            continue
        answers = []
        for name in ("care", "nobodys", "CARE", "care@live", "..%2Fcare", "x" * 200, "саre"):
            if method == "GET" and "%2F" in name:  # a slash ends the parameter, so there is no such route
                continue
            body = {"model": name, **BODIES[template]} if method == "POST" else None
            path = template.replace("{model}", name)
            answers.append(client.request(method, path, headers=headers, json=body))
        foreign, *missing = [error_of(answer, 404) | {"request_id": None} for answer in answers]
        assert all(other == foreign for other in missing), template
    own = {"Authorization": f"Bearer {tokens['owner']}"}
    assert [model["id"] for model in client.get("/v1/models", headers=own).json()["data"]] == ["care"]
