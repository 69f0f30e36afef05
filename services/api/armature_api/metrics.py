"""Metrics of the job queue, read from the database per scrape: all replicas report the same values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from armature.contracts.jobs import JobState
from armature.db.base import db_now
from armature.db.models import Job
from armature.db.transitions import is_active
from armature.logging import get_logger

_SHOWN_SECONDS = 3600.0


class JobCollector(Collector):
    """The gauges ``armature_jobs{state}`` and ``armature_outbox_{pending,oldest_seconds}``.

    Finished jobs are counted for an hour only: all of them would be too many for each scrape.
    """

    def __init__(self, readers: sessionmaker[Session]) -> None:
        self._readers = readers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the current gauges; none during a database outage, so that other metrics are still read."""
        try:
            with self._readers.begin() as session:
                counts, pending, age = _read(session)
        except SQLAlchemyError as error:
            get_logger(__name__).warning("job metrics left out", reason=type(error).__name__)
            return
        jobs = GaugeMetricFamily(
            "armature_jobs", "Jobs by state; finished ones of the last hour only", labels=["state"]
        )
        for state in get_args(JobState):
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("armature_outbox_pending", "Queued jobs without a message sent", value=pending)
        yield GaugeMetricFamily(
            "armature_outbox_oldest_seconds", "Age of the oldest queued job without a message sent", value=age
        )


def _read(session: Session) -> tuple[dict[JobState, int], int, float]:
    counts: dict[JobState, int] = {}
    for shown in (is_active(), Job.finished_at > db_now() - _SHOWN_SECONDS):
        counts |= dict(session.execute(select(Job.state, func.count()).where(shown).group_by(Job.state)).all())
    unsent = (Job.state == "queued", Job.dispatched_at.is_(None))
    oldest = func.coalesce(db_now() - func.min(Job.created_at), 0.0)
    pending, age = session.execute(select(func.count(), oldest).where(*unsent)).one()
    return counts, pending, age
