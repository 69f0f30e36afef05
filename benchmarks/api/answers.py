"""Response times of the API, full tables against empty ones, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import httpx

from benchmarks.pairing import p95, take_turns

REQUESTS = {
    "list": "/v1/jobs",
    "get": "/v1/jobs/{newest}",
    "get_done": "/v1/jobs/{done}",
    "list_from_a_place": "/v1/jobs?after={done}",
    "list_by_state": "/v1/jobs?state=failed",
    "list_by_kind": "/v1/jobs?kind=evaluation.run",
    "list_by_metadata": "/v1/jobs?metadata[team]=team-7",
    "list_by_rare_metadata": "/v1/jobs?metadata[ticket]=T-1",
    "events": "/v1/jobs/{done}/events",
    "artifacts": "/v1/artifacts",
}
"""Paths requested from the full tables, by name; of the empty ones, ``list`` and ``get`` are requested."""
_PEERS = {"get": "get", "get_done": "get"}
"""The request to the empty tables that is the reference; ``list`` for those not named here."""


def ask_in_turns(empty: httpx.Client, full: httpx.Client, jobless: httpx.Client, rounds: int) -> dict[str, Any]:
    """Time every request ``rounds`` times, in turns.

    Args:
        empty: A client of an API whose database has the jobs of one page and no others.
        full: A client of an API whose database is full.
        jobless: A client of the first API, for a tenant without jobs.

    Returns:
        ``p95_ms`` of each request, ``p95_over_empty``, and ``list_p95_over_nothing``, against an empty page.
    """
    requests = {("full", name): (full, path.format(**_jobs(full))) for name, path in REQUESTS.items()}
    for name in ("list", "get"):
        requests["empty", name] = (empty, REQUESTS[name].format(**_jobs(empty)))
    requests["nothing", "list"] = (jobless, REQUESTS["list"])
    contenders = {" ".join(key): partial(_timed, *request) for key, request in requests.items()}
    slow = {name: p95(times) for name, times in take_turns(contenders, rounds).items()}
    over = {name: slow[f"full {name}"] / slow[f"empty {_PEERS.get(name, 'list')}"] for name in REQUESTS}
    return {
        "p95_ms": _rounded({name: 1000 * seconds for name, seconds in slow.items()}),
        "p95_over_empty": _rounded(over),
        "list_p95_over_nothing": round(slow["full list"] / slow["nothing list"], 3),
    }


def _jobs(client: httpx.Client) -> dict[str, str]:
    """The ids of the newest job and of the newest succeeded one."""
    newest = _get(client, "/v1/jobs?limit=1").json()["data"][0]["id"]
    return {"newest": newest, "done": _get(client, "/v1/jobs?limit=1&state=succeeded").json()["data"][0]["id"]}


def _timed(client: httpx.Client, path: str) -> list[float]:
    started = time.perf_counter()
    _get(client, path)
    return [time.perf_counter() - started]


def _get(client: httpx.Client, path: str) -> httpx.Response:
    return client.get(path).raise_for_status()


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}
