"""Time that a worker takes to find the next job by fair share and to claim it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from armature.db import jobs
from armature.db.fair_share import next_job, take_turn
from armature.db.models import Job
from armature.db.transitions import Lease
from benchmarks.pairing import p95, ratio, spread, take_turns

_CLAIMS = 5
"""Claims in a run, of which the median counts."""


def claim_in_turns(sessions: Mapping[str, sessionmaker[Session]], rounds: int) -> dict[str, Any]:
    """Time claims on ``full`` and ``small`` tables; the release after each is not timed."""
    contenders = {name: partial(_claims, factory, _ticket(factory)) for name, factory in sessions.items()}
    times = take_turns(contenders, rounds)
    return {
        "over": ratio(times, "full", "small"),
        "quartiles": spread(times, "full", "small"),
        "p95_ms": {name: round(1000 * p95(seconds), 3) for name, seconds in times.items()},
    }


def _ticket(sessions: sessionmaker[Session]) -> str:
    """The id of any queued job: a message names one, and fair share decides which job is run for it."""
    with sessions() as session:
        return session.scalars(select(Job.id).where(Job.state == "queued").limit(1)).one()


def _claims(sessions: sessionmaker[Session], ticket: str) -> list[float]:
    seconds = []
    for _ in range(_CLAIMS):
        started = time.perf_counter()
        with sessions.begin() as session:
            job_id = next_job(session, ticket)
        assert job_id is not None
        with sessions.begin() as session:
            assert take_turn(session, job_id)
            job = jobs.claim(session, job_id, "bench", 60.0)
        seconds.append(time.perf_counter() - started)
        assert job is not None
        with sessions.begin() as session:
            assert jobs.release(session, Lease(job.id, job.fence), "measured", refund=True)
    return seconds
