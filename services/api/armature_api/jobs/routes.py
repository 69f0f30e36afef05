"""``/v1/jobs``."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Query

from armature.contracts.base import digest
from armature.contracts.jobs import JobCreateRequest, JobEventView, JobRetryRequest, JobView
from armature.contracts.pages import Page
from armature.db.job_requests import request_cancel, request_pause, resume
from armature.db.models import Job
from armature_api.deps import CallerDep, ReaderDep, SessionDep, scoped_router
from armature_api.idempotency import OnceDep
from armature_api.jobs import service
from armature_api.jobs.dispatch import SubmissionDep
from armature_api.jobs.examples import JOB_EXAMPLES
from armature_api.rows import PageDep, find, newest_first, visible

router = scoped_router("jobs", "jobs")

_DEFAULT_RETRY = JobRetryRequest()  # the body is optional


@router.post("/jobs", status_code=202)
def create_job(
    request: Annotated[JobCreateRequest, Body(openapi_examples=JOB_EXAMPLES)],
    caller: CallerDep,
    session: SessionDep,
    submission: SubmissionDep,
    once: OnceDep,
) -> JobView:
    """Submit a job. ``Location`` says where to look for its progress."""
    body = digest(request.model_dump(mode="json"))

    def create() -> JobView:
        return submission.accept(session, service.create_job(session, caller, request, submission.max_attempts))

    return once.answer(session, JobView, body, create)


@router.get("/jobs")
def list_jobs(caller: CallerDep, session: ReaderDep, page: PageDep) -> Page[JobView]:
    """List jobs, newest first."""
    rows, has_more = newest_first(session, Job, visible(Job, caller.tenant_id), page)
    return Page.of(service.job_views(session, rows), has_more)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, caller: CallerDep, session: ReaderDep) -> JobView:
    """Show a job."""
    return service.job_views(session, [find(session, Job, caller.tenant_id, job_id)])[0]


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, caller: CallerDep, session: SessionDep) -> JobView:
    """Cancel a job: at once while it waits, at its next step while it runs. Asking again changes nothing."""
    find(session, Job, caller.tenant_id, job_id)
    return service.job_views(session, [request_cancel(session, caller.tenant_id, job_id)])[0]


@router.post("/jobs/{job_id}/pause")
def pause_job(job_id: str, caller: CallerDep, session: SessionDep) -> JobView:
    """Pause a job: at once while it waits, after saving a checkpoint while it runs. Asking again changes nothing."""
    find(session, Job, caller.tenant_id, job_id)
    return service.job_views(session, [request_pause(session, caller.tenant_id, job_id)])[0]


@router.post("/jobs/{job_id}/resume")
def resume_job(job_id: str, caller: CallerDep, session: SessionDep, submission: SubmissionDep) -> JobView:
    """Queue a paused job again. It goes on from its newest checkpoint, and the attempt does not count."""
    find(session, Job, caller.tenant_id, job_id)
    return submission.accept(session, resume(session, caller.tenant_id, job_id))


@router.post("/jobs/{job_id}/retry", status_code=202)
def retry_job(
    job_id: str,
    caller: CallerDep,
    session: SessionDep,
    submission: SubmissionDep,
    once: OnceDep,
    request: Annotated[JobRetryRequest, Body()] = _DEFAULT_RETRY,
) -> JobView:
    """Submit a failed or cancelled job again, as a new job that names it under ``retried_from``."""
    body = digest(request.model_dump(mode="json"))

    def retry() -> JobView:
        old = find(session, Job, caller.tenant_id, job_id)
        return submission.accept(session, service.retry_job(session, caller, old, request, submission.max_attempts))

    return once.answer(session, JobView, body, retry)


@router.get("/jobs/{job_id}/events")
def list_events(
    job_id: str,
    caller: CallerDep,
    session: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int, Query(ge=0, lt=2**31, description="seq of the last event seen")] = 0,
) -> Page[JobEventView]:
    """A job's log, oldest first."""
    find(session, Job, caller.tenant_id, job_id)
    events, has_more = service.events_after(session, job_id, after, limit)
    return Page.of(events, has_more, key="seq")
