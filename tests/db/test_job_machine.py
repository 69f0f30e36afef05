"""Any order of steps, by current and stale workers, the owner and the relay, keeps every job's invariants.

Time is the machine's own: it passes by moving what the rows remember into the past.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import event, update

from armature.contracts.errors import ErrorObject
from armature.contracts.jobs import JOB_TRANSITIONS, TERMINAL_STATES
from armature.db import job_queue, job_requests, jobs
from armature.db.jobs import Position
from armature.db.models import Job
from armature.db.session import make_engine, make_session_factory
from armature.db.transitions import Event, Lease
from armature.errors import InvalidTransition
from armature.settings import DatabaseSettings
from tests.support.jobs import add_job, add_tenant, artifacts, events, get_job, publication

LEASE, RESEND = 1000.0, 5000.0
ERROR = ErrorObject(message="no good", type="server_error", code="internal_error")
JOBS = 2
numbers = st.integers(0, JOBS - 1)
ages = st.sampled_from([0, 0, 0, 1, 2])
"""Of the lease that a worker holds; most hold the newest one."""
REQUESTS = {
    "cancel": job_requests.request_cancel,
    "pause": job_requests.request_pause,
    "resume": job_requests.resume,
}
REFUSED = {
    "cancel": {"succeeded", "failed"},
    "pause": {"cancelling", *TERMINAL_STATES},
    "resume": {"queued", "running", "cancelling", *TERMINAL_STATES},
}


@dataclass
class Tracked:
    """A job as it was after the step before, and every lease that was ever handed out for it."""

    id: str
    before: Job
    leases: list[Lease] = field(default_factory=list)
    acknowledged_cancel: bool = False


class JobMachine(RuleBasedStateMachine):
    """Jobs, their workers, their owner and the relay."""

    template: Path

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "armature.db"
        shutil.copyfile(self.template, path)
        self.engine = make_engine(DatabaseSettings(url=f"sqlite:///{path}"))
        event.listen(self.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        self.sessions = make_session_factory(self.engine)
        self.tenant = add_tenant(self.sessions)
        ids = [add_job(self.sessions, self.tenant, kind="arm.train") for _ in range(JOBS)]
        self.jobs = [Tracked(id, get_job(self.sessions, id)) for id in ids]

    def teardown(self):
        """Run the workers until every job has ended."""
        try:
            for _ in range(20):
                for job in self.jobs:
                    self.work_to_the_end(job)
                if all(job.before.state in TERMINAL_STATES for job in self.jobs):
                    break
                self.pass_time(2 * RESEND)
                self.relay()
                self.promises_hold()
            assert {job.before.state for job in self.jobs} <= TERMINAL_STATES
        finally:
            self.engine.dispose()
            self.folder.cleanup()

    def work_to_the_end(self, job):
        if job.before.state == "paused":
            self.step(job_requests.resume, self.tenant, job.id)
            self.promises_hold()
        self.claim(self.jobs.index(job))
        self.promises_hold()
        if job.leases:
            self.step(jobs.publish, job.leases[-1], [publication(self.tenant)])
        self.promises_hold()

    def step(self, function, *args, **options):
        with self.sessions.begin() as session:
            return function(session, *args, **options)

    def holds(self, job: Tracked, lease: Lease) -> bool:
        return job.before.state in ("running", "cancelling") and job.before.fence == lease.fence

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, 2 * LEASE, 2 * RESEND]))
    def pass_time(self, seconds):
        moments = ("lease_until", "not_before", "dispatched_at", "progress_at")
        earlier = {name: getattr(Job, name) - seconds for name in moments}
        self.step(lambda session: session.execute(update(Job).values(earlier)))
        self.refresh()

    @rule()
    def relay(self):
        due = self.step(job_queue.due_for_dispatch, RESEND)
        self.step(job_queue.mark_dispatched, [job.id for job in due])
        self.step(job_queue.expire_leases)

    @rule(number=numbers)
    def claim(self, number):
        tracked = self.jobs[number]
        job = self.step(jobs.claim, tracked.id, "w", LEASE)
        if job is not None:
            assert tracked.before.state == "queued"
            tracked.leases.append(Lease(job.id, job.fence))

    @rule(number=numbers, age=ages, percent=st.floats(0, 100))
    def heartbeat(self, number, age, percent):
        job = self.jobs[number]
        if not job.leases:
            return
        lease = job.leases[-1 - age % len(job.leases)]
        pulse = self.step(jobs.heartbeat, lease, LEASE, Position("train", 1, 2, percent), [Event("beat")])
        expected = "pause_requested" if job.before.pause_requested else job.before.state
        assert pulse == (expected if self.holds(job, lease) else "lost")

    @rule(number=numbers, age=ages, ending=st.sampled_from(["publish", "fail", "finish_cancelled", "finish_paused"]))
    def end(self, number, age, ending):
        job = self.jobs[number]
        if not job.leases:
            return
        lease = job.leases[-1 - age % len(job.leases)]
        arguments = {"publish": [[publication(self.tenant)]], "fail": [ERROR]}.get(ending, [])
        possible = {
            "publish": job.before.state == "running",
            "fail": job.before.state == "running",
            "finish_cancelled": job.before.state == "cancelling",
            "finish_paused": job.before.pause_requested,
        }
        done = self.step(getattr(jobs, ending), lease, *arguments)
        assert done == (self.holds(job, lease) and possible[ending])

    @rule(number=numbers, age=ages, delay=st.sampled_from([0.0, LEASE]), refund=st.booleans())
    def release(self, number, age, delay, refund):
        job = self.jobs[number]
        if job.leases:
            lease = job.leases[-1 - age % len(job.leases)]
            done = self.step(jobs.release, lease, "shutdown", delay=delay, refund=refund)
            may = refund or job.before.attempt < job.before.max_attempts or job.before.state == "cancelling"
            assert done == (self.holds(job, lease) and may)

    @rule(number=numbers, age=ages)
    def save_checkpoint(self, number, age):
        job = self.jobs[number]
        if job.leases:
            lease = job.leases[-1 - age % len(job.leases)]
            assert self.step(jobs.save_checkpoint, lease, {"step": lease.fence}) == self.holds(job, lease)

    @rule(number=numbers, request=st.sampled_from(sorted(REQUESTS)))
    def ask(self, number, request):
        job = self.jobs[number]
        try:
            self.step(REQUESTS[request], self.tenant, job.id)
        except InvalidTransition:
            assert job.before.state in REFUSED[request]
        else:
            assert job.before.state not in REFUSED[request]
            job.acknowledged_cancel |= request == "cancel"

    def refresh(self):
        for job in self.jobs:
            job.before = get_job(self.sessions, job.id)

    @invariant()
    def promises_hold(self):
        for tracked in self.jobs:
            before, job = tracked.before, get_job(self.sessions, tracked.id)
            if job.state != before.state:
                assert job.state in JOB_TRANSITIONS[before.state]
            if before.state in TERMINAL_STATES:
                assert (job.state, job.fence, job.last_event_seq) == (before.state, before.fence, before.last_event_seq)
            if tracked.acknowledged_cancel:
                assert job.state in ("cancelling", "cancelled")
            assert job.fence >= before.fence
            assert job.percent >= before.percent
            assert 0 <= job.attempt <= job.max_attempts
            assert len(artifacts(self.sessions, job.id)) == int(job.state == "succeeded")
            assert (job.finished_at is not None) == (job.state in TERMINAL_STATES)
            assert (job.lease_until is not None) == (job.state in ("running", "cancelling"))
            assert (job.error is not None) == (job.state == "failed")
            assert not job.pause_requested or job.state == "running"
            events(self.sessions, job.id)
            tracked.before = job


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_any_order_of_steps_keeps_the_promises(sqlite_template):
    JobMachine.template = sqlite_template
    run_state_machine_as_test(
        JobMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes minutes
        ),
    )
