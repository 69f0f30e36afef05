"""What the queue looks like, read from the database at each scrape: every replica reports the same truth."""

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
    """``armature_jobs{state}``, ``armature_outbox_pending`` and ``armature_outbox_oldest_seconds``.

    Jobs that are over are counted for an hour: all there ever were are too many to count at each scrape.
    """

    def __init__(self, readers: sessionmaker[Session]) -> None:
        self._readers = readers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of this moment; none while the database does not answer, so the rest is still scraped."""
        try:
            with self._readers.begin() as session:
                counts, pending, age = _read(session)
        except SQLAlchemyError as error:
            get_logger(__name__).warning("job metrics left out", reason=type(error).__name__)
            return
        jobs = GaugeMetricFamily(
            "armature_jobs", "Jobs by state; of those that are over, the last hour's", labels=["state"]
        )
        for state in get_args(JobState):
            jobs.add_metric([state], counts.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("armature_outbox_pending", "Queued jobs that no message was sent for", value=pending)
        yield GaugeMetricFamily("armature_outbox_oldest_seconds", "Age of the oldest of them", value=age)


def _read(session: Session) -> tuple[dict[JobState, int], int, float]:
    counts: dict[JobState, int] = {}
    for shown in (is_active(), Job.finished_at > db_now() - _SHOWN_SECONDS):
        counts |= dict(session.execute(select(Job.state, func.count()).where(shown).group_by(Job.state)).all())
    unsent = (Job.state == "queued", Job.dispatched_at.is_(None))
    oldest = func.coalesce(db_now() - func.min(Job.created_at), 0.0)
    pending, age = session.execute(select(func.count(), oldest).where(*unsent)).one()
    return counts, pending, age
