"""``armature doctor``: whether a platform works from here, and where it does not."""

from __future__ import annotations

import os

import httpx
import typer
from pydantic import BaseModel

from armature_cli.commands.session import AUTHENTICATION, FAILED, NETWORK, OK, JsonOption, show_list


class Finding(BaseModel):
    """One thing that was looked at."""

    check: str
    ok: bool
    detail: str
    code: int


def doctor(as_json: JsonOption = False) -> None:
    """Check the environment, the API, the key and the decoder."""
    from armature.client.sync.client import API_KEY, API_URL, DECODER_URL

    api, key = os.environ.get(API_URL, ""), os.environ.get(API_KEY, "")
    decoder = os.environ.get(DECODER_URL, "")
    headers = {"Authorization": f"Bearer {key}"}
    findings = [
        _is_set(API_URL, api),
        _is_set(API_KEY, key, secret=True),
        _answers("api", f"{api}/readyz", {}),
        _answers("key", f"{api}/v1/jobs?limit=1", headers),
    ]
    if decoder:
        findings.append(_answers("decoder", f"{decoder}/readyz", {}))
        findings.append(_answers("models", f"{decoder}/v1/models", headers))
    show_list(findings, ("check", "ok", "detail"), as_json)
    worst = next((finding.code for finding in findings if not finding.ok), OK)
    if worst != OK:
        raise typer.Exit(worst)


def _is_set(name: str, value: str, *, secret: bool = False) -> Finding:
    detail = "set" if value and secret else value or "not set"
    return Finding(check=name, ok=bool(value), detail=detail, code=FAILED)


def _answers(check: str, url: str, headers: dict[str, str]) -> Finding:
    try:
        response = httpx.get(url, headers=headers, timeout=10)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(check=check, ok=False, detail=f"{url}: {type(error).__name__}", code=NETWORK)
    if response.is_success:
        return Finding(check=check, ok=True, detail=f"{url.partition('?')[0]}: {response.status_code}", code=OK)
    code = AUTHENTICATION if response.status_code in (401, 403) else FAILED
    return Finding(check=check, ok=False, detail=f"{url}: {response.status_code} {response.text[:200]}", code=code)
