"""Jobs: their states, the allowed transitions, and their requests and views in the API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from armature.contracts.artifact_views import ArtifactView
from armature.contracts.artifacts import BlobRef, Parent
from armature.contracts.base import Contract, Sha256, UnixSeconds, View, open_enum
from armature.contracts.errors import ErrorObject
from armature.contracts.specs import JobSpec
from armature.errors import InvalidTransition, JobAlreadyFinished

JobState = Literal["queued", "running", "paused", "cancelling", "succeeded", "failed", "cancelled"]

EventLevel = Literal["info", "warn", "error"]
WaitReason = Literal["memory", "device"]
EventType = Literal["message", "metrics"]

JOB_TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"running", "paused", "cancelled"}),
    "running": frozenset({"queued", "paused", "cancelling", "succeeded", "failed"}),
    "paused": frozenset({"queued", "cancelled"}),
    "cancelling": frozenset({"cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""queued -> running is the claim, running -> queued a requeue: an attempt that ended without a result.

``cancelling`` leads to ``cancelled`` only, so a cancelled job can not publish.
"""

TERMINAL_STATES = frozenset(state for state, following in JOB_TRANSITIONS.items() if not following)
ACTIVE_STATES = tuple(state for state in JOB_TRANSITIONS if state not in TERMINAL_STATES)


def check_transition(current: JobState, target: JobState) -> None:
    """Refuse a transition that :data:`JOB_TRANSITIONS` does not list.

    Raises:
        JobAlreadyFinished: The job is over (HTTP 409).
        InvalidTransition: The move is not allowed (HTTP 409).
    """
    if current in TERMINAL_STATES:
        raise JobAlreadyFinished(f"the job is over: it is {current}", param="state")
    if target not in JOB_TRANSITIONS[current]:
        raise InvalidTransition(f"a job that is {current} can not become {target}", param="state")


Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16, description="the caller's own labels: up to 16 pairs"),
]


class JobCreateRequest(Contract):
    """The submission of a job."""

    spec: JobSpec
    shared: bool = Field(False, description="let every tenant use the results; needs the platform scope")
    metadata: Metadata = Field(default_factory=dict)


class JobRetryRequest(Contract):
    """The resubmission of a failed or cancelled job, as a new job."""

    from_checkpoint: bool = Field(True, description="resume from the newest checkpoint, if one is kept")
    metadata: Metadata | None = Field(None, description="labels of the new job; by default the old one's")


class Progress(View):
    """A job's progress. ``percent`` covers all phases and attempts and never decreases.

    ``step`` counts within the phase.
    """

    percent: float = 0.0
    step: int = 0
    total_steps: int = 0
    eta_seconds: int | None = Field(None, description="estimated at updated_at; null until there is a rate")
    updated_at: UnixSeconds | None = None


class WaitingFor(View):
    """What a queued job lacks on the worker that had it last."""

    reason: Annotated[str, open_enum(WaitReason)] = Field(
        description="memory: of the device; device: all that are large enough are taken"
    )
    needs_bytes: int = Field(description="estimated, on one device; 0: unknown")
    free_bytes: int | None = Field(None, description="on the device with the most free memory; null: not measured")
    remedy: str

    def message(self) -> str:
        """Say in one line what the job waits for, for its events and for people at a terminal."""
        if self.reason != "memory" or self.free_bytes is None:
            return f"waits for a {self.reason}"
        needs, free = (f"{size / 2**30:.2f} GiB" for size in (self.needs_bytes, self.free_bytes))
        return f"waits for memory: needs {needs}, {free} free"


class JobCheckpoint(Contract):
    """A saved position of a long job: a folder of files in the store, below ``prefix``."""

    step: int = Field(ge=0)
    prefix: str
    files: list[BlobRef]
    saved_at: UnixSeconds | None = None

    def size(self) -> int:
        """Sum the bytes of all files."""
        return sum(file.size for file in self.files)


class JobDataset(View):
    """A data set that a job made."""

    id: str
    name: str
    rows: int


class JobView(View):
    """A job as the API shows it."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    state: Annotated[str, open_enum(JobState)]
    phase: str = Field(description="queued or paused while waiting, done after success, else a phase of the kind")
    progress: Progress
    pause_requested: bool = Field(description="the worker saves a checkpoint, then the job is paused")
    queue_position: int | None = Field(
        description="among the tenant's own jobs: 1 is next; null if not queued or beyond 1,000"
    )
    waiting_for: WaitingFor | None = Field(
        None, description="what the job lacks, as of its newest event; null if no worker had to put it back"
    )
    shared: bool
    attempt: int
    max_attempts: int
    retried_from: str | None = Field(description="the failed or cancelled job that this one repeats")
    created_at: UnixSeconds
    started_at: UnixSeconds | None
    finished_at: UnixSeconds | None
    estimated_finish: UnixSeconds | None
    error: ErrorObject | None
    parents: list[Parent]
    artifacts: list[ArtifactView] = Field(description="empty until the job has succeeded")
    datasets: list[JobDataset] = Field(default_factory=list, description="data sets that the job made")
    base_model_id: str | None = Field(None, description="the model that base_model.import registered")
    metadata: dict[str, str]
    spec: dict[str, Any]


class JobEventView(View):
    """One entry of a job's log; ``seq`` has no gaps."""

    seq: int
    object: Literal["job.event"] = "job.event"
    created_at: UnixSeconds
    level: Annotated[str, open_enum(EventLevel)]
    type: Annotated[str, open_enum(EventType)]
    message: str
    data: dict[str, Any]


class JobCheckpointView(View):
    """A saved position from which the job, or a retry of it, resumes."""

    id: str
    object: Literal["job.checkpoint"] = "job.checkpoint"
    job_id: str
    created_at: UnixSeconds
    step_number: int
    bytes: int
    sha256: Sha256 = Field(description="over the list of files and their hashes")
    resumable: Literal[True] = True
