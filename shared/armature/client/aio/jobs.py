"""``client.jobs``."""

from __future__ import annotations

import time
from asyncio import sleep
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx_sse

from armature.client.aio.transport import AsyncPages, AsyncTransport
from armature.client.errors import APIConnectionError, JobFailed
from armature.client.wire import Call, pause_before_retry
from armature.contracts.jobs import TERMINAL_STATES, JobCheckpointView, JobEventView, JobView
from armature.contracts.specs import JobSpec
from armature.contracts.specs.base import BaseSpec

_RECONNECTS = 8


class AsyncJobs:
    """Jobs: submission, control, progress."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        spec: JobSpec | Mapping[str, Any],
        *,
        shared: bool = False,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> JobView:
        """Submit a job. With an ``idempotency_key``, repeating the call after a crash submits no second job."""
        given = spec.model_dump(mode="json") if isinstance(spec, BaseSpec) else dict(spec)
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = {"spec": given, "shared": shared, "metadata": dict(metadata or {})}
        return await self._transport.get(JobView, "POST", "jobs", json=body, headers=headers)

    async def retrieve(self, job_id: str) -> JobView:
        """Retrieve a job."""
        return await self._transport.get(JobView, "GET", f"jobs/{job_id}")

    def list(self, *, limit: int = 100, **filters: Any) -> AsyncPages[JobView]:
        """List jobs, newest first. ``filters`` are the route's query parameters."""
        return AsyncPages(self._transport, JobView, "jobs", limit=limit, **filters)

    async def cancel(self, job_id: str) -> JobView:
        """Request the cancellation of a job."""
        return await self._transport.get(JobView, "POST", f"jobs/{job_id}/cancel")

    async def pause(self, job_id: str) -> JobView:
        """Request a pause: the job saves a checkpoint and releases its worker."""
        return await self._transport.get(JobView, "POST", f"jobs/{job_id}/pause")

    async def resume(self, job_id: str) -> JobView:
        """Requeue a paused job."""
        return await self._transport.get(JobView, "POST", f"jobs/{job_id}/resume")

    async def retry(self, job_id: str, *, from_checkpoint: bool = True) -> JobView:
        """Submit a failed or cancelled job again and return the new job."""
        body = {"from_checkpoint": from_checkpoint}
        return await self._transport.get(JobView, "POST", f"jobs/{job_id}/retry", json=body)

    def list_events(self, job_id: str, *, after: int = 0, limit: int = 100) -> AsyncPages[JobEventView]:
        """List a job's log so far, oldest first."""
        return AsyncPages(self._transport, JobEventView, f"jobs/{job_id}/events", after=after, limit=limit)

    def checkpoints(self, job_id: str) -> AsyncPages[JobCheckpointView]:
        """List the checkpoints that the job, or a retry of it, can resume from."""
        return AsyncPages(self._transport, JobCheckpointView, f"jobs/{job_id}/checkpoints")

    async def stream_events(self, job_id: str, *, after: int = 0) -> AsyncIterator[JobEventView]:
        """Yield a job's log as it is written, to the end of the job.

        A broken connection is resumed after the last event.

        Raises:
            APIConnectionError: The platform stays unreachable after several retries.
        """
        failures = 0
        while True:
            headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
            call = Call("GET", f"jobs/{job_id}/events", params={"stream": "true"}, headers=headers)
            try:
                async with self._transport.stream(call) as response:
                    async for message in httpx_sse.EventSource(response).aiter_sse():
                        if not message.data:
                            continue
                        event = JobEventView.model_validate_json(message.data)
                        after, failures = event.seq, 0
                        yield event
                if (await self.retrieve(job_id)).state in TERMINAL_STATES:
                    return
            except APIConnectionError:
                failures += 1
                if failures > _RECONNECTS:
                    raise
                await sleep(pause_before_retry(failures, None) or 0.0)

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float = 3600.0,
        poll: float = 0.3,
        on_progress: Callable[[JobView], object] | None = None,
    ) -> JobView:
        """Poll a job until it has succeeded and return it.

        Args:
            job_id: Id of the job.
            timeout: Seconds.
            poll: Seconds between two polls.
            on_progress: Called with the job after each poll.

        Raises:
            JobFailed: The job failed or was cancelled.
            TimeoutError: The job has not ended after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            job = await self.retrieve(job_id)
            if on_progress is not None:
                on_progress(job)
            if job.state == "succeeded":
                return job
            if job.state in TERMINAL_STATES:
                raise JobFailed(job)
            if time.monotonic() >= deadline:
                raise TimeoutError(f"job {job_id} is still {job.state} after {timeout:g} s")
            await sleep(poll)
