"""``armature doctor``: checks of the environment and of a platform's answers."""

from __future__ import annotations

import os
from collections.abc import Callable

import httpx
import typer
from pydantic import BaseModel

from armature_cli.commands.session import AUTHENTICATION, CONFIGURATION, FAILED, NETWORK, OK, JsonOption, show_list


class Finding(BaseModel):
    """The result of one check."""

    check: str
    ok: bool
    detail: str
    code: int


def doctor(as_json: JsonOption = False) -> None:
    """Check the environment, the API, the key and the decoder."""
    from armature.client.access import API_KEY, API_URL, DECODER_URL, find_key, find_url

    has_decoder = DECODER_URL in os.environ
    findings = [_is_set(API_URL, lambda: find_url(None, API_URL)), _is_set(API_KEY, lambda: find_key() and "set")]
    if has_decoder:
        findings.append(_is_set(DECODER_URL, lambda: find_url(None, DECODER_URL)))
    if all(finding.ok for finding in findings):
        api, headers = find_url(None, API_URL), {"Authorization": f"Bearer {find_key()}"}
        findings.append(_answers("api", f"{api}/readyz", {}))
        findings.append(_answers("key", f"{api}/v1/jobs?limit=1", headers))
        if has_decoder:
            decoder = find_url(None, DECODER_URL)
            findings.append(_answers("decoder", f"{decoder}/readyz", {}))
            findings.append(_answers("models", f"{decoder}/v1/models", headers))
    show_list(findings, ("check", "ok", "detail"), as_json)
    worst = next((finding.code for finding in findings if not finding.ok), OK)
    if worst != OK:
        raise typer.Exit(worst)


def _is_set(name: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding(check=name, ok=True, detail=find(), code=OK)
    except ValueError as error:
        return Finding(check=name, ok=False, detail=str(error), code=CONFIGURATION)


def _answers(check: str, url: str, headers: dict[str, str]) -> Finding:
    try:
        response = httpx.get(url, headers=headers, timeout=10)
    except httpx.HTTPError as error:
        return Finding(check=check, ok=False, detail=f"{url}: {type(error).__name__}", code=NETWORK)
    if response.is_success:
        return Finding(check=check, ok=True, detail=f"{url.partition('?')[0]}: {response.status_code}", code=OK)
    code = AUTHENTICATION if response.status_code in (401, 403) else FAILED
    return Finding(check=check, ok=False, detail=f"{url}: {response.status_code} {response.text[:200]}", code=code)
