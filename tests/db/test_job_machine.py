"""Any order of the protocol's steps, by current and by outdated workers, keeps the promises of a job."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from armature.contracts.errors import ErrorObject
from armature.contracts.jobs import JOB_TRANSITIONS, TERMINAL_STATES
from armature.db import jobs
from armature.db.jobs import Event, Lease
from armature.db.session import make_engine, make_session_factory
from armature.errors import InvalidTransition
from armature.settings import DatabaseSettings
from tests.support.jobs import add_job, add_tenant, artifacts, events, get_job, let_lease_run_out, publication

LEASE = 1000.0
ERROR = ErrorObject(message="no good", type="server_error", code="internal_error")
lease_age = st.integers(0, 2)


class JobMachine(RuleBasedStateMachine):
    """One job, its workers of yesterday and today, its owner and the relay."""

    template: Path

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "armature.db"
        shutil.copyfile(self.template, path)
        self.engine = make_engine(DatabaseSettings(url=f"sqlite:///{path}"))
        self.sessions = make_session_factory(self.engine)
        self.tenant = add_tenant(self.sessions)
        self.job_id = add_job(self.sessions, self.tenant)
        self.leases: list[Lease] = []
        self.before = get_job(self.sessions, self.job_id)

    def teardown(self):
        self.engine.dispose()
        self.folder.cleanup()

    def step(self, function, *args, **options):
        with self.sessions.begin() as session:
            return function(session, *args, **options)

    def held(self, lease: Lease) -> bool:
        job = get_job(self.sessions, self.job_id)
        return job.state == "running" and job.fence == lease.fence

    @rule()
    def claim(self):
        job = self.step(jobs.claim, self.job_id, "w", LEASE)
        assert (job is not None) == (self.before.state == "queued")
        if job is not None:
            self.leases.append(Lease(job.id, job.fence))

    @precondition(lambda self: self.leases)
    @rule(age=lease_age)
    def heartbeat(self, age):
        lease = self.leases[-1 - age % len(self.leases)]
        held = self.held(lease)
        assert (self.step(jobs.heartbeat, lease, LEASE, None, [Event("beat")]) != "lost") == held

    @precondition(lambda self: self.leases)
    @rule(
        age=lease_age,
        ending=st.sampled_from(["publish", "fail", "finish_cancelled", "release", "save_checkpoint"]),
    )
    def end(self, age, ending):
        lease = self.leases[-1 - age % len(self.leases)]
        held, cancelled = self.held(lease), self.before.cancel_requested_at is not None
        arguments = {
            "publish": [[publication(self.tenant)]],
            "fail": [ERROR],
            "finish_cancelled": [],
            "release": ["shutdown"],
            "save_checkpoint": [{"step": 1}],
        }
        allowed = {"publish": not cancelled, "finish_cancelled": cancelled}.get(ending, True)
        assert self.step(getattr(jobs, ending), lease, *arguments[ending]) == (held and allowed)

    @rule()
    def cancel(self):
        try:
            self.step(jobs.request_cancel, self.tenant, self.job_id)
        except InvalidTransition:
            assert self.before.state in {"succeeded", "failed"}

    @rule(silent=st.booleans())
    def relay(self, silent):
        if silent and self.before.state == "running":
            let_lease_run_out(self.sessions, self.job_id)
        self.step(jobs.expire_leases)

    @invariant()
    def promises_hold(self):
        before, job = self.before, get_job(self.sessions, self.job_id)
        if job.state != before.state:
            assert job.state in JOB_TRANSITIONS[before.state]
        if before.state in TERMINAL_STATES:
            assert (job.state, job.fence, job.last_event_seq) == (before.state, before.fence, before.last_event_seq)
        assert job.fence >= before.fence
        assert job.attempt <= job.max_attempts
        assert len(artifacts(self.sessions, self.job_id)) == int(job.state == "succeeded")
        assert (job.finished_at is not None) == (job.state in TERMINAL_STATES)
        assert (job.lease_until is not None) == (job.state == "running")
        assert (job.error is not None) == (job.state == "failed")
        assert not (job.state == "queued" and job.cancel_requested_at is not None)
        events(self.sessions, self.job_id)
        self.before = job


@pytest.mark.timeout(60)
def test_any_order_of_steps_keeps_the_promises(sqlite_template):
    JobMachine.template = sqlite_template
    run_state_machine_as_test(
        JobMachine,
        settings=settings(
            max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
