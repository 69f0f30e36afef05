"""Runs ``python -m benchmarks api``: real servers and processes, three databases, one report.

=======  ===========================================================================================================
full     ``jobs`` jobs of many tenants: the one that is measured
small    a hundredth of them: the reference for claims
empty    one page of jobs of one tenant: the reference for answers, since both are then equally long
=======  ===========================================================================================================
"""

from __future__ import annotations

import os
import platform as machine
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker

from armature.client import Client
from armature.db.models import Artifact, Job, JobEvent, Tenant
from armature.db.session import make_engine, make_session_factory
from armature.settings import DatabaseSettings
from armature_api.bootstrap import bootstrap
from armature_api.settings import ApiServiceSettings
from benchmarks.api import rows
from benchmarks.api.answers import ask_in_turns
from benchmarks.api.backlog import cancel_waiting, drain
from benchmarks.api.claims import claim_in_turns
from benchmarks.api.databases import make_databases
from benchmarks.api.platform import ControlPlane
from benchmarks.api.submissions import submit, write_model
from benchmarks.pairing import p95
from benchmarks.plan import ApiPlan

PAGE = 20
SMALL_SHARE = 100


def measure(plan: ApiPlan, folder: Path | None, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Run the benchmark; its processes and files are gone afterwards.

    Raises:
        PostgresMissing: No server is named, and no binaries are installed.
        JobFailed: A submitted job did not succeed.
    """
    with ExitStack() as stack:
        urls = stack.enter_context(make_databases(plan.database_url, folder, ("empty", "small", "full")))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="armature-bench-")))
        platforms = {name: stack.enter_context(ControlPlane(scratch / name, urls[name])) for name in ("empty", "full")}
        bootstrap(_settings(urls["small"]))
        sessions = {name: stack.enter_context(_sessions(url)) for name, url in urls.items()}
        _fill(sessions, plan.jobs)
        report: dict[str, Any] = {"machine": _machine(sessions["full"]), "rows": _count_rows(sessions["full"])}
        progress(f"tables filled: {report['rows']}")
        answers = _ask(platforms, plan.rounds)
        progress(f"answers: {answers}")
        claims = claim_in_turns({name: sessions[name] for name in ("full", "small")}, plan.rounds)
        progress(f"claims: {claims}")
        relay = drain(platforms["full"], sessions["full"])
        progress(f"relay: {relay}")
        seconds = _submit(platforms["full"], sessions["full"], scratch / "model", plan.submissions)
    return {
        "list_p95_over_empty": answers["p95_over_empty"]["list"],
        "get_p95_over_empty": answers["p95_over_empty"]["get"],
        "claim_100k_over_1k": claims["over"],
        "submit_to_running_p95_ms": round(1000 * p95(seconds), 1),
        "relay_jobs_per_s": relay["jobs_per_s"],
        "relay_lost": relay["lost"],
        **report,
        "answers": answers,
        "claims": claims,
        "relay": relay,
        "submit_to_running_ms": [round(1000 * one, 1) for one in seconds],
    }


def _settings(url: str) -> ApiServiceSettings:
    return ApiServiceSettings(database=DatabaseSettings.model_validate({"url": url}))


@contextmanager
def _sessions(url: str) -> Iterator[sessionmaker[Session]]:
    engine = make_engine(_settings(url).database)
    try:
        yield make_session_factory(engine)
    finally:
        engine.dispose()


def _fill(sessions: Mapping[str, sessionmaker[Session]], jobs: int) -> None:
    sizes = {"empty": (PAGE, 1), "small": (jobs // SMALL_SHARE, rows.TENANTS), "full": (jobs, rows.TENANTS)}
    for name, size in sizes.items():
        with sessions[name]() as session:
            owner = session.scalars(select(Tenant.id)).one()
        rows.fill(sessions[name], owner, *size)


def _ask(platforms: Mapping[str, ControlPlane], rounds: int) -> dict[str, Any]:
    with Client(platforms["empty"].api_url, platforms["empty"].admin_key) as admin:
        token = admin.keys.create(admin.tenants.ensure("jobless").id, scopes=("jobs:read",)).token
    with (
        _http(platforms["empty"]) as empty,
        _http(platforms["full"]) as full,
        _http(platforms["empty"], token) as jobless,
    ):
        return ask_in_turns(empty, full, jobless, rounds)


def _submit(platform: ControlPlane, sessions: sessionmaker[Session], model: Path, count: int) -> list[float]:
    cancel_waiting(sessions)
    write_model(model)
    with _http(platform) as http:
        return submit(platform, http, model, count)


def _http(platform: ControlPlane, token: str | None = None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token or platform.admin_key}"}
    return httpx.Client(base_url=platform.api_url, headers=headers, timeout=60)


def _count_rows(sessions: sessionmaker[Session]) -> dict[str, Any]:
    tables = {"jobs": Job, "events": JobEvent, "artifacts": Artifact, "tenants": Tenant}
    with sessions() as session:
        counts = {name: session.scalars(select(func.count()).select_from(row)).one() for name, row in tables.items()}
        states = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
        return {**counts, "jobs_by_state": dict(states)}


def _machine(sessions: sessionmaker[Session]) -> dict[str, Any]:
    with sessions() as session:
        version = session.scalars(text("SHOW server_version")).one()
    return {"cores": os.cpu_count(), "architecture": machine.machine(), "postgresql": version}
