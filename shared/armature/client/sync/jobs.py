"""``client.jobs``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from time import sleep
from typing import Any

import httpx_sse

from armature.client.errors import APIConnectionError, JobFailed
from armature.client.sync.transport import Pages, Transport
from armature.client.wire import Call, pause_before_retry
from armature.contracts.jobs import TERMINAL_STATES, JobCheckpointView, JobEventView, JobView
from armature.contracts.specs import JobSpec
from armature.contracts.specs.base import BaseSpec

_RECONNECTS = 8


class Jobs:
    """Submitting jobs, following them, steering them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        spec: JobSpec | Mapping[str, Any],
        *,
        shared: bool = False,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> JobView:
        """Submit a job. A key of its own makes repeating it after a broken connection safe."""
        given = spec.model_dump(mode="json") if isinstance(spec, BaseSpec) else dict(spec)
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = {"spec": given, "shared": shared, "metadata": dict(metadata or {})}
        return self._transport.get(JobView, "POST", "jobs", json=body, headers=headers)

    def retrieve(self, job_id: str) -> JobView:
        """A job as it is now."""
        return self._transport.get(JobView, "GET", f"jobs/{job_id}")

    def list(self, *, limit: int = 100, **filters: Any) -> Pages[JobView]:
        """Jobs, newest first. ``filters`` are the route's query parameters."""
        return Pages(self._transport, JobView, "jobs", limit=limit, **filters)

    def cancel(self, job_id: str) -> JobView:
        """Ask for a job's end."""
        return self._transport.get(JobView, "POST", f"jobs/{job_id}/cancel")

    def pause(self, job_id: str) -> JobView:
        """Ask a job to save where it is and to give its worker back."""
        return self._transport.get(JobView, "POST", f"jobs/{job_id}/pause")

    def resume(self, job_id: str) -> JobView:
        """Queue a paused job again."""
        return self._transport.get(JobView, "POST", f"jobs/{job_id}/resume")

    def retry(self, job_id: str, *, from_checkpoint: bool = True) -> JobView:
        """Submit a failed or cancelled job again; the answer is the new job."""
        body = {"from_checkpoint": from_checkpoint}
        return self._transport.get(JobView, "POST", f"jobs/{job_id}/retry", json=body)

    def list_events(self, job_id: str, *, after: int = 0, limit: int = 100) -> Pages[JobEventView]:
        """A job's log so far, oldest first."""
        return Pages(self._transport, JobEventView, f"jobs/{job_id}/events", after=after, limit=limit)

    def checkpoints(self, job_id: str) -> Pages[JobCheckpointView]:
        """What the job, or a retry of it, would go on from."""
        return Pages(self._transport, JobCheckpointView, f"jobs/{job_id}/checkpoints")

    def stream_events(self, job_id: str, *, after: int = 0) -> Iterator[JobEventView]:
        """A job's log as it is written, to the end of the job. A connection that breaks is taken up where it broke.

        Raises:
            APIConnectionError: The platform can not be reached for a while.
        """
        failures = 0
        while True:
            headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
            call = Call("GET", f"jobs/{job_id}/events", params={"stream": "true"}, headers=headers)
            try:
                with self._transport.stream(call) as response:
                    for message in httpx_sse.EventSource(response).iter_sse():
                        if not message.data:
                            continue
                        event = JobEventView.model_validate_json(message.data)
                        after, failures = event.seq, 0
                        yield event
                if (self.retrieve(job_id)).state in TERMINAL_STATES:
                    return
            except APIConnectionError:
                failures += 1
                if failures > _RECONNECTS:
                    raise
                sleep(pause_before_retry(failures, None) or 0.0)

    def wait(
        self,
        job_id: str,
        *,
        timeout: float = 3600.0,
        poll: float = 0.3,
        on_progress: Callable[[JobView], object] | None = None,
    ) -> JobView:
        """Poll until the job has succeeded.

        Args:
            timeout: Seconds.
            poll: Seconds between two looks.
            on_progress: Called with the job after each look.

        Raises:
            JobFailed: It failed or was cancelled.
            TimeoutError: It is still under way after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            job = self.retrieve(job_id)
            if on_progress is not None:
                on_progress(job)
            if job.state == "succeeded":
                return job
            if job.state in TERMINAL_STATES:
                raise JobFailed(job)
            if time.monotonic() >= deadline:
                raise TimeoutError(f"job {job_id} is still {job.state} after {timeout:g} s")
            sleep(poll)
