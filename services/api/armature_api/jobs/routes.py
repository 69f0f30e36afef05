"""``/v1/jobs``."""

from __future__ import annotations

from typing import Annotated

from fastapi import BackgroundTasks, Body, Header, Query, Response

from armature.contracts.jobs import JobCreateRequest, JobEventView, JobView
from armature.contracts.pages import Page
from armature.db.jobs import request_cancel
from armature.db.models import Job
from armature_api.deps import CallerDep, ReaderDep, ResourcesDep, SessionDep, scoped_router
from armature_api.jobs import service
from armature_api.jobs.dispatch import dispatch
from armature_api.jobs.examples import JOB_EXAMPLES
from armature_api.rows import PageDep, find, newest_first, visible

router = scoped_router("jobs", "jobs")


@router.post("/jobs", status_code=202)
def create_job(
    request: Annotated[JobCreateRequest, Body(openapi_examples=JOB_EXAMPLES)],
    caller: CallerDep,
    session: SessionDep,
    resources: ResourcesDep,
    response: Response,
    after_commit: BackgroundTasks,
    idempotency_key: Annotated[str | None, Header(description="repeating a request with its key is safe")] = None,
) -> JobView:
    """Submit a job. ``Location`` says where to look for its progress."""
    key = service.check_idempotency_key(idempotency_key)
    accepted = service.create_job(session, caller, request, key, resources.settings.jobs.max_attempts)
    job = accepted.job
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if accepted.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    else:
        after_commit.add_task(dispatch, resources, job.id, job.queue)
    return service.job_views(session, [job])[0]


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
    """Cancel a job: at once while it is queued, at its next step while it runs. Asking again changes nothing."""
    find(session, Job, caller.tenant_id, job_id)
    return service.job_views(session, [request_cancel(session, caller.tenant_id, job_id)])[0]


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
