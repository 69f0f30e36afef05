"""Routes of ``/v1/jobs``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Body, Depends, Header, Query
from fastapi.responses import StreamingResponse
from pydantic import Field

from armature.contracts.jobs import JobCheckpointView, JobCreateRequest, JobEventView, JobRetryRequest, JobView
from armature.contracts.pages import Page
from armature.db.job_requests import request_cancel, request_pause, resume
from armature.db.models import Job
from armature_api.deps import CallerDep, ReaderDep, ResourcesDep, SessionDep, scoped_router
from armature_api.jobs import service
from armature_api.jobs.dispatch import SubmissionDep
from armature_api.jobs.events import checkpoints_of, events_after
from armature_api.jobs.examples import JOB_EXAMPLES
from armature_api.jobs.filters import FiltersDep
from armature_api.kit.idempotency import NOTHING, OnceDep
from armature_api.kit.queries import PageDep, find, newest_first, visible_parts

router = scoped_router("jobs", "jobs")

_EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "a page, or the stream"}
}
_Seq = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True)
class EventsRequest:
    """Query of a job's log: which events, as a page or as a stream."""

    limit: Annotated[int, Query(ge=1, le=100)] = 20
    after: Annotated[_Seq, Query(description="seq of the last event seen")] = 0
    stream: Annotated[bool, Query(description="server-sent events, until the job is over")] = False
    last_event_id: Annotated[_Seq | None, Header(description="where a stream resumes; overrides after")] = None


_DEFAULT_RETRY = JobRetryRequest()  # the body is optional


@router.post("/jobs", status_code=202)
def create_job(
    request: Annotated[JobCreateRequest, Body(openapi_examples=JOB_EXAMPLES)],
    caller: CallerDep,
    session: SessionDep,
    submission: SubmissionDep,
    once: OnceDep,
) -> JobView:
    """Submit a job. ``Location`` names the job, which shows its progress."""

    def create() -> JobView:
        return submission.accept(session, service.create_job(session, caller, request, submission.max_attempts))

    return once.answer(session, JobView, request, create)


@router.get("/jobs")
def list_jobs(caller: CallerDep, session: ReaderDep, page: PageDep, filters: FiltersDep) -> Page[JobView]:
    """List jobs, newest first unless ``order`` says otherwise; ``metadata[key]=value`` may be repeated."""
    rows, has_more = newest_first(session, Job, visible_parts(Job, caller.tenant_id), page, filters)
    return Page.of(service.job_views(session, rows), has_more)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, caller: CallerDep, session: ReaderDep) -> JobView:
    """Show a job."""
    return service.job_views(session, [find(session, Job, caller.tenant_id, job_id)])[0]


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, caller: CallerDep, session: SessionDep) -> JobView:
    """Cancel a job: at once while queued, at its next step while running. Repeating changes nothing."""
    find(session, Job, caller.tenant_id, job_id)
    return service.job_views(session, [request_cancel(session, caller.tenant_id, job_id)])[0]


@router.post("/jobs/{job_id}/pause")
def pause_job(job_id: str, caller: CallerDep, session: SessionDep) -> JobView:
    """Pause a job: at once while queued, after a checkpoint while running. Repeating changes nothing."""
    find(session, Job, caller.tenant_id, job_id)
    return service.job_views(session, [request_pause(session, caller.tenant_id, job_id)])[0]


@router.post("/jobs/{job_id}/resume")
def resume_job(
    job_id: str, caller: CallerDep, session: SessionDep, submission: SubmissionDep, once: OnceDep
) -> JobView:
    """Queue a paused job again. It goes on from its newest checkpoint, and the attempt does not count."""

    def resume_once() -> JobView:
        find(session, Job, caller.tenant_id, job_id)
        return submission.accept(session, resume(session, caller.tenant_id, job_id))

    return once.answer(session, JobView, NOTHING, resume_once)


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

    def retry() -> JobView:
        old = find(session, Job, caller.tenant_id, job_id)
        return submission.accept(session, service.retry_job(session, caller, old, request, submission.max_attempts))

    return once.answer(session, JobView, request, retry)


@router.get("/jobs/{job_id}/checkpoints")
def list_checkpoints(job_id: str, caller: CallerDep, session: ReaderDep) -> Page[JobCheckpointView]:
    """List the checkpoint that the job, or a retry of it, resumes from: the newest, if one is kept."""
    return Page.of(checkpoints_of(find(session, Job, caller.tenant_id, job_id)), False)


@router.get("/jobs/{job_id}/events", response_model=Page[JobEventView], responses=_EVENT_STREAM)
def list_events(
    job_id: str,
    caller: CallerDep,
    session: ReaderDep,
    resources: ResourcesDep,
    query: Annotated[EventsRequest, Depends()],
) -> Page[JobEventView] | StreamingResponse:
    """List a job's log, oldest first: a page or, with ``stream``, every event until the job is over."""
    find(session, Job, caller.tenant_id, job_id)
    if not query.stream:
        events, has_more = events_after(session, job_id, query.after, query.limit)
        return Page.of(events, has_more, key="seq")
    after = query.after if query.last_event_id is None else query.last_event_id
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    stream = resources.event_stream.follow(job_id, after)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
